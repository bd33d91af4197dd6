package ai.onnxruntime;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import standin.Recorded;

/** A session whose answer is a recorded one, or what it was fed: enough to see tensors go through. */
public class OrtSession implements AutoCloseable {
    public Result run(Map<String, ? extends OnnxTensor> inputs) throws OrtException {
        Map<String, byte[]> given = new LinkedHashMap<>();
        inputs.forEach((name, tensor) -> given.put(name, tensor.content));
        Map<String, OnnxTensor> answers = new LinkedHashMap<>();
        Recorded.answers(given).forEach((name, content) -> answers.put(name, new OnnxTensor(content, new long[0])));
        return new Result(answers);
    }

    @Override
    public void close() throws OrtException {}

    public static class Result implements AutoCloseable {
        private final Map<String, OnnxTensor> values;

        Result(Map<String, OnnxTensor> values) { this.values = values; }

        public Optional<OnnxValue> get(String key) { return Optional.ofNullable(values.get(key)); }

        @Override
        public void close() {}
    }

    public static class SessionOptions implements AutoCloseable {
        public void setIntraOpNumThreads(int threads) throws OrtException {}

        public void addConfigEntry(String key, String value) throws OrtException {}

        public void addXnnpack(Map<String, String> options) throws OrtException {}

        public void addQnn(Map<String, String> options) throws OrtException {}

        @Override
        public void close() {}
    }
}
