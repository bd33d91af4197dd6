package edge_template;

import java.nio.ByteBuffer;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.tensorflow.lite.Interpreter;

/**
 * Runs the validated file with LiteRT: flat arrays in and out, by tensor name.
 *
 * The model is the asset {@code ModelInfo.get().asset()}; another file is refused. One object serves one thread at a
 * time; close it when done. For the GPU: {@code new Interpreter.Options().addDelegate(new GpuDelegate())}.
 */
public final class LiteRtModel implements AutoCloseable {
    private final Interpreter interpreter;

    /** Runs the model that a direct or mapped buffer holds, which stays as it is until {@link #close}. */
    public LiteRtModel(ByteBuffer model, Interpreter.Options settings) {
        ModelInfo.get().requireValidated(model);
        interpreter = new Interpreter(model, settings);
    }

    /** Runs the model on the CPU, with {@code threads} threads for one inference. */
    public LiteRtModel(byte[] model, int threads) {
        this(direct(model), new Interpreter.Options().setNumThreads(threads));
    }

    /** Runs the model once and returns every output by its name. */
    public Map<String, Object> run(Map<String, ?> inputs) {
        Map<String, Object> feeds = new LinkedHashMap<String, Object>();
        for (ModelInfo.Tensor tensor : ModelInfo.get().inputs()) {
            Object array = inputs.get(tensor.name());
            feeds.put(tensor.name(), Tensors.direct(tensor, array));
            Tensors.shape(tensor, Tensors.count(array, tensor.dtype()), Collections.<String, Long>emptyMap());
        }
        Map<String, Object> buffers = new LinkedHashMap<String, Object>();
        for (ModelInfo.Tensor tensor : ModelInfo.get().outputs()) {
            long count = 1;
            for (long size : tensor.shape()) {
                count *= size;
            }
            buffers.put(tensor.name(), Tensors.empty((int) count * Tensors.size(tensor.dtype())));
        }
        interpreter.runSignature(feeds, buffers);
        Map<String, Object> answers = new LinkedHashMap<String, Object>();
        for (ModelInfo.Tensor tensor : ModelInfo.get().outputs()) {
            ByteBuffer bytes = (ByteBuffer) buffers.get(tensor.name());
            bytes.rewind();
            answers.put(tensor.name(), Tensors.array(bytes, tensor.dtype()));
        }
        return answers;
    }

    /** Returns the {@code count} best labels for a picture; {@code argb} is what {@link Preprocessing#tensor} takes. */
    public List<Label> classify(int[] argb, int width, int height, int count) {
        String input = ModelInfo.get().inputs().get(0).name();
        return Postprocessing.top(run(Collections.singletonMap(input, Preprocessing.tensor(argb, width, height))), count);
    }

    @Override
    public void close() {
        interpreter.close();
    }

    private static ByteBuffer direct(byte[] content) {
        ByteBuffer buffer = Tensors.empty(content.length);
        buffer.duplicate().put(content);
        return buffer;
    }
}
