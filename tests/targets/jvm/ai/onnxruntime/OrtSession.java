package ai.onnxruntime;

import java.util.Map;
import java.util.Optional;

/** A session whose answer is what it was fed: enough to see tensors go through the generated code. */
public class OrtSession implements AutoCloseable {
    public Result run(Map<String, ? extends OnnxTensor> inputs) throws OrtException { return new Result(inputs); }

    @Override
    public void close() throws OrtException {}

    public static class Result implements AutoCloseable {
        private final Map<String, ? extends OnnxTensor> values;

        Result(Map<String, ? extends OnnxTensor> values) { this.values = values; }

        public Optional<OnnxValue> get(String key) { return Optional.ofNullable(values.get(key)); }

        @Override
        public void close() {}
    }

    public static class SessionOptions implements AutoCloseable {
        public void setIntraOpNumThreads(int threads) throws OrtException {}

        public void setInterOpNumThreads(int threads) throws OrtException {}

        public void addXnnpack(Map<String, String> options) throws OrtException {}

        public void addQnn(Map<String, String> options) throws OrtException {}

        @Override
        public void close() {}
    }
}
