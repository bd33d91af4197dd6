package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;

/** The part of onnxruntime's Java interface that the classes of a package call; it keeps bytes and computes nothing. */
public class OnnxTensor implements OnnxValue {
    final byte[] content;
    public final long[] shape;

    OnnxTensor(byte[] content, long[] shape) {
        this.content = content;
        this.shape = shape;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = bytes(data.remaining(), 4, shape);
        bytes.asFloatBuffer().put(data.duplicate());
        return new OnnxTensor(bytes.array(), shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, DoubleBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = bytes(data.remaining(), 8, shape);
        bytes.asDoubleBuffer().put(data.duplicate());
        return new OnnxTensor(bytes.array(), shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = bytes(data.remaining(), 8, shape);
        bytes.asLongBuffer().put(data.duplicate());
        return new OnnxTensor(bytes.array(), shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, IntBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = bytes(data.remaining(), 4, shape);
        bytes.asIntBuffer().put(data.duplicate());
        return new OnnxTensor(bytes.array(), shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ShortBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = bytes(data.remaining(), 2, shape);
        bytes.asShortBuffer().put(data.duplicate());
        return new OnnxTensor(bytes.array(), shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
            throws OrtException {
        int size = type == OnnxJavaType.FLOAT16 ? 2 : 1;
        return new OnnxTensor(bytes(data.remaining() / size, size, shape).put(data.duplicate()).array(), shape);
    }

    /** As the real one: native bytes, in a buffer that early releases call big-endian. */
    public ByteBuffer getByteBuffer() { return ByteBuffer.wrap(content.clone()); }

    @Override
    public void close() {}

    private static ByteBuffer bytes(int count, int size, long[] shape) throws OrtException {
        long wanted = 1;
        for (long axis : shape) {
            wanted *= axis;
        }
        if (wanted != count) {
            throw new OrtException();
        }
        return ByteBuffer.allocate(count * size).order(ByteOrder.nativeOrder());
    }
}
