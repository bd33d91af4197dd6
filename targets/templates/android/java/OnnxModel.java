package edge_template;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * Runs the validated file with onnxruntime: flat arrays in and out, by tensor name.
 *
 * {@code model} holds the bytes of the asset {@code ModelInfo.get().asset()}; others are refused. One object may serve
 * several threads; close it when done.
 */
public final class OnnxModel implements AutoCloseable {
    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final OrtSession session;

    /** Runs the model as {@code settings} say, which the caller may close afterwards. */
    public OnnxModel(byte[] model, OrtSession.SessionOptions settings) throws OrtException {
        ModelInfo.get().requireValidated(ByteBuffer.wrap(model));
        session = environment.createSession(model, settings);
    }

    /** Returns the model on the CPU, with {@code threads} threads for one inference. */
    public static OnnxModel onCpu(byte[] model, int threads) throws OrtException {
        try (OrtSession.SessionOptions settings = settings(threads)) {
            return new OnnxModel(model, settings);
        }
    }

    /** Returns the model with XNNPACK for what it takes and the CPU for the rest; measure both ways on the phone. */
    public static OnnxModel onXnnpack(byte[] model, int threads) throws OrtException {
        try (OrtSession.SessionOptions settings = settings(threads)) {
            settings.addXnnpack(Collections.singletonMap("intra_op_num_threads", Integer.toString(threads)));
            return new OnnxModel(model, settings);
        }
    }

    /** Returns the model on the Snapdragon NPU; it takes the package onnxruntime-android-qnn and a file made for it. */
    public static OnnxModel onSnapdragonNpu(byte[] model) throws OrtException {
        try (OrtSession.SessionOptions settings = settings(1)) {
            settings.addQnn(Collections.singletonMap("backend_path", "libQnnHtp.so"));
            return new OnnxModel(model, settings);
        }
    }

    /** Runs the model once and returns every output by its name. A single named axis is told from an input's length. */
    public Map<String, Object> run(Map<String, ?> inputs) throws OrtException {
        return run(inputs, Collections.<String, Long>emptyMap());
    }

    /** Runs the model once; {@code axes} gives the sizes of named axes. */
    public Map<String, Object> run(Map<String, ?> inputs, Map<String, Long> axes) throws OrtException {
        Map<String, OnnxTensor> feeds = new LinkedHashMap<String, OnnxTensor>();
        try {
            for (ModelInfo.Tensor tensor : ModelInfo.get().inputs()) {
                feeds.put(tensor.name(), feed(tensor, inputs.get(tensor.name()), axes));
            }
            try (OrtSession.Result results = session.run(feeds)) {
                Map<String, Object> answers = new LinkedHashMap<String, Object>();
                for (ModelInfo.Tensor tensor : ModelInfo.get().outputs()) {
                    OnnxTensor answer = (OnnxTensor) results.get(tensor.name()).get();
                    ByteBuffer bytes = answer.getByteBuffer().order(ByteOrder.nativeOrder());
                    answers.put(tensor.name(), Tensors.array(bytes, tensor.dtype()));
                }
                return answers;
            }
        } finally {
            for (OnnxTensor feed : feeds.values()) {
                feed.close();
            }
        }
    }

    /** Returns the {@code count} best labels for a picture; {@code argb} is what {@link Preprocessing#tensor} takes. */
    public List<Label> classify(int[] argb, int width, int height, int count) throws OrtException {
        String input = ModelInfo.get().inputs().get(0).name();
        return Postprocessing.top(run(Collections.singletonMap(input, Preprocessing.tensor(argb, width, height))), count);
    }

    @Override
    public void close() throws OrtException {
        session.close();
    }

    private static OrtSession.SessionOptions settings(int threads) throws OrtException {
        OrtSession.SessionOptions settings = new OrtSession.SessionOptions();
        settings.setIntraOpNumThreads(threads);
        // As ARM does by itself: on x86, an emulator's, int8 would become uint8, whose sums saturate without VNNI.
        settings.addConfigEntry("session.qdqisint8allowed", "1");
        return settings;
    }

    private OnnxTensor feed(ModelInfo.Tensor tensor, Object array, Map<String, Long> axes) throws OrtException {
        ByteBuffer bytes = Tensors.direct(tensor, array);
        long[] shape = Tensors.shape(tensor, Tensors.count(array, tensor.dtype()), axes);
        // Wider types go as buffers of their own: releases differ in how they count a ByteBuffer's values.
        if (array instanceof float[]) {
            return OnnxTensor.createTensor(environment, bytes.asFloatBuffer(), shape);
        }
        if (array instanceof double[]) {
            return OnnxTensor.createTensor(environment, bytes.asDoubleBuffer(), shape);
        }
        if (array instanceof long[]) {
            return OnnxTensor.createTensor(environment, bytes.asLongBuffer(), shape);
        }
        if (array instanceof int[]) {
            return OnnxTensor.createTensor(environment, bytes.asIntBuffer(), shape);
        }
        if (array instanceof short[]) {
            return OnnxTensor.createTensor(environment, bytes.asShortBuffer(), shape);
        }
        OnnxJavaType type = OnnxJavaType.valueOf(tensor.dtype().toUpperCase(Locale.ROOT));
        return OnnxTensor.createTensor(environment, bytes, shape, type);
    }
}
