package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;

/** The part of onnxruntime's Java interface that generated code calls; it keeps buffers and computes nothing. */
public final class OnnxTensor implements OnnxValue {
    private final Object buffer;
    public final long[] shape;

    private OnnxTensor(Object buffer, long[] shape) {
        this.buffer = buffer;
        this.shape = shape;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, DoubleBuffer data, long[] shape) throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape) throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, IntBuffer data, long[] shape) throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ShortBuffer data, long[] shape) throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
            throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public FloatBuffer getFloatBuffer() { return (FloatBuffer) buffer; }

    public DoubleBuffer getDoubleBuffer() { return (DoubleBuffer) buffer; }

    public LongBuffer getLongBuffer() { return (LongBuffer) buffer; }

    public IntBuffer getIntBuffer() { return (IntBuffer) buffer; }

    public ShortBuffer getShortBuffer() { return (ShortBuffer) buffer; }

    public ByteBuffer getByteBuffer() { return (ByteBuffer) buffer; }

    @Override
    public void close() {}
}
