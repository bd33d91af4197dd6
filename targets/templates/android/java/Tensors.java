package edge_template;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Map;

/** Flat arrays and their bytes: float[], double[], long[], int[] or short[]; byte[] holds one-byte types and float16. */
final class Tensors {
    private Tensors() {}

    /** Returns the bytes of one value of {@code dtype}. */
    static int size(String dtype) {
        switch (dtype) {
            case "float64":
            case "int64":
                return 8;
            case "float32":
            case "int32":
                return 4;
            case "int16":
            case "float16":
                return 2;
            case "int8":
            case "uint8":
            case "bool":
                return 1;
            default:
                throw new IllegalArgumentException("no array holds " + dtype);
        }
    }

    /** Returns an array of {@code count} values of {@code dtype}, all 0. */
    static Object zeros(String dtype, int count) {
        switch (dtype) {
            case "float64":
                return new double[count];
            case "int64":
                return new long[count];
            case "float32":
                return new float[count];
            case "int32":
                return new int[count];
            case "int16":
                return new short[count];
            default:
                return new byte[count * size(dtype)];
        }
    }

    /** Returns the values of {@code dtype} in {@code bytes}, which are in its own byte order. */
    static Object array(ByteBuffer bytes, String dtype) {
        Object array = zeros(dtype, bytes.remaining() / size(dtype));
        if (array instanceof float[]) {
            bytes.asFloatBuffer().get((float[]) array);
        } else if (array instanceof double[]) {
            bytes.asDoubleBuffer().get((double[]) array);
        } else if (array instanceof long[]) {
            bytes.asLongBuffer().get((long[]) array);
        } else if (array instanceof int[]) {
            bytes.asIntBuffer().get((int[]) array);
        } else if (array instanceof short[]) {
            bytes.asShortBuffer().get((short[]) array);
        } else {
            bytes.duplicate().get((byte[]) array);
        }
        return array;
    }

    /** Returns a direct buffer in native byte order that holds {@code array}, which must be what {@code tensor} takes. */
    static ByteBuffer direct(ModelInfo.Tensor tensor, Object array) {
        Object wanted = zeros(tensor.dtype(), 0);
        if (array == null || array.getClass() != wanted.getClass()) {
            throw new IllegalArgumentException("input " + tensor.name() + " takes " + wanted.getClass().getSimpleName()
                    + ", not " + (array == null ? "null" : array.getClass().getSimpleName()));
        }
        ByteBuffer bytes = empty(count(array, tensor.dtype()) * size(tensor.dtype()));
        if (array instanceof float[]) {
            bytes.asFloatBuffer().put((float[]) array);
        } else if (array instanceof double[]) {
            bytes.asDoubleBuffer().put((double[]) array);
        } else if (array instanceof long[]) {
            bytes.asLongBuffer().put((long[]) array);
        } else if (array instanceof int[]) {
            bytes.asIntBuffer().put((int[]) array);
        } else if (array instanceof short[]) {
            bytes.asShortBuffer().put((short[]) array);
        } else {
            bytes.duplicate().put((byte[]) array);
        }
        return bytes;
    }

    static ByteBuffer empty(int size) {
        return ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder());
    }

    /** Returns how many values of {@code dtype} {@code array} holds. */
    static int count(Object array, String dtype) {
        int length = java.lang.reflect.Array.getLength(array);
        return array instanceof byte[] ? length / size(dtype) : length;
    }

    /**
     * Returns the shape of an input that holds {@code count} values, where {@code axes} gives the sizes of named axes.
     *
     * One axis that it does not give is told from the count. Throws IllegalArgumentException where the count fits no shape.
     */
    static long[] shape(ModelInfo.Tensor tensor, int count, Map<String, Long> axes) {
        long[] shape = tensor.shape();
        int unknown = -1;
        long known = 1;
        for (int axis = 0; axis < shape.length; axis++) {
            if (shape[axis] < 0 && axes.containsKey(tensor.axis(axis))) {
                shape[axis] = axes.get(tensor.axis(axis));
            }
            if (shape[axis] >= 0) {
                known *= shape[axis];
            } else if (unknown < 0) {
                unknown = axis;
            } else {
                throw new IllegalArgumentException(
                        "input " + tensor.name() + " needs the sizes of its axes, among them " + tensor.axis(axis));
            }
        }
        if (unknown >= 0 && known > 0) {
            shape[unknown] = count / known;
            known *= shape[unknown];
        }
        if (known != count) {
            throw new IllegalArgumentException(
                    "input " + tensor.name() + " of shape " + Arrays.toString(shape) + " does not take " + count + " values");
        }
        return shape;
    }

    /** Returns the values of {@code array}, which are of {@code dtype}, as doubles. */
    static double[] values(Object array, String dtype) {
        double[] values = new double[count(array, dtype)];
        for (int index = 0; index < values.length; index++) {
            if (!(array instanceof byte[])) {
                values[index] = java.lang.reflect.Array.getDouble(array, index);
                continue;
            }
            byte[] bytes = (byte[]) array;
            if (dtype.equals("float16")) {
                values[index] = ofHalf(ByteBuffer.wrap(bytes).order(ByteOrder.nativeOrder()).getShort(2 * index));
            } else {
                values[index] = dtype.equals("int8") ? bytes[index] : bytes[index] & 0xFF;
            }
        }
        return values;
    }

    /** Sets one value of {@code array}; {@code value} is in the range of {@code dtype}. */
    static void set(Object array, String dtype, int index, double value) {
        if (array instanceof float[]) {
            ((float[]) array)[index] = (float) value;
        } else if (dtype.equals("float16")) {
            ByteBuffer.wrap((byte[]) array).order(ByteOrder.nativeOrder()).putShort(2 * index, half(value));
        } else {
            ((byte[]) array)[index] = (byte) (int) value;
        }
    }

    /** Returns the half-precision number nearest to {@code value}, ties to even (IEEE 754 binary16). */
    static short half(double value) {
        int sign = Double.doubleToRawLongBits(value) < 0 ? 0x8000 : 0;
        double size = Math.abs(value);
        if (Double.isNaN(value)) {
            return (short) 0x7E00;
        }
        int exponent = Math.max(-14, Math.min(16, Math.getExponent(size)));
        if (exponent == 16) {
            return (short) (sign | 0x7C00);
        }
        // In steps of this exponent; a mantissa that rounds up to 2048 carries into the exponent by itself.
        int steps = (int) Math.rint(Math.scalb(size, 10 - exponent));
        return (short) (sign | (((exponent + 14) << 10) + steps));
    }

    /** Returns the distance from {@code value} to the next number of a float type; NaN beyond what the type can hold. */
    static double step(String dtype, double value) {
        double size = Math.abs(dtype.equals("float16") ? ofHalf(half(value)) : (float) value);
        if (Double.isInfinite(size)) {
            return Double.NaN;
        }
        return dtype.equals("float16") ? Math.scalb(1.0, Math.max(Math.getExponent(size), -14) - 10) : Math.ulp((float) size);
    }

    static double ofHalf(short bits) {
        int exponent = (bits >> 10) & 31;
        int mantissa = bits & 1023;
        double size = exponent == 31
                ? (mantissa == 0 ? Double.POSITIVE_INFINITY : Double.NaN)
                : Math.scalb((double) (exponent == 0 ? mantissa : mantissa + 1024), Math.max(exponent, 1) - 25);
        return bits < 0 ? -size : size;
    }
}
