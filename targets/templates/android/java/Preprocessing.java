package edge_template;

/**
 * Turns a picture into the tensor that the model was calibrated on.
 *
 * Resampling follows Pillow's (area-aware, 22-bit fixed point, horizontal then vertical), because a platform's own scaler
 * gives other pixels. Turn the picture upright by its EXIF tag first.
 */
public final class Preprocessing {
    private static final int PRECISION_BITS = 22;

    private final Contract contract;

    /** Interleaved 8-bit pixels, {@code channels} values each. */
    private static final class Pixels {
        final int width;
        final int height;
        final int channels;
        final byte[] values;

        Pixels(int width, int height, int channels) {
            this.width = width;
            this.height = height;
            this.channels = channels;
            values = new byte[width * height * channels];
        }
    }

    /** Source index of the first pixel that counts, and the fixed-point weights from there on. */
    private static final class Weights {
        final int first;
        final int[] values;

        Weights(int first, int[] values) {
            this.first = first;
            this.values = values;
        }
    }

    /** Prepares pictures by another contract than that of the model these classes came with. */
    public Preprocessing(Contract contract) {
        if (contract == null) {
            throw new IllegalStateException("the model takes tensors as they are; its recipe describes no preprocessing");
        }
        this.contract = contract;
    }

    /**
     * Returns the model's input for one picture: float[], or byte[] where the model takes int8, uint8 or float16.
     *
     * {@code argb} holds one int a pixel, 0xAARRGGBB, rows from the top, as Bitmap.getPixels gives them.
     */
    public static Object tensor(int[] argb, int width, int height) {
        return new Preprocessing(ModelInfo.get().contract()).prepare(argb, width, height);
    }

    /** Returns the tensor for one picture; see {@link #tensor}. */
    public Object prepare(int[] argb, int width, int height) {
        if (width <= 0 || height <= 0 || argb.length != (long) width * height) {
            throw new IllegalArgumentException("argb does not hold " + width + " x " + height + " pixels");
        }
        Pixels fitted = fit(flatten(argb, width, height));
        Object tensor = Tensors.zeros(contract.dtype, fitted.values.length);
        for (int pixel = 0; pixel < contract.width * contract.height; pixel++) {
            for (int channel = 0; channel < contract.channels; channel++) {
                int source = contract.color.equals("BGR") ? contract.channels - 1 - channel : channel;
                int level = fitted.values[pixel * contract.channels + source] & 0xFF;
                double value = (level * contract.scale - contract.mean[channel]) / contract.std[channel];
                Tensors.set(tensor, contract.dtype, contract.place(contract.layout, pixel, channel), contract.rounded(value));
            }
        }
        return tensor;
    }

    private Pixels flatten(int[] argb, int width, int height) {
        Pixels pixels = new Pixels(width, height, contract.channels);
        for (int index = 0; index < argb.length; index++) {
            int color = argb[index];
            int alpha = color >>> 24;
            int red = overBlack((color >> 16) & 0xFF, alpha);
            int green = overBlack((color >> 8) & 0xFF, alpha);
            int blue = overBlack(color & 0xFF, alpha);
            if (pixels.channels == 1) {
                pixels.values[index] = (byte) ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
            } else {
                pixels.values[index * 3] = (byte) red;
                pixels.values[index * 3 + 1] = (byte) green;
                pixels.values[index * 3 + 2] = (byte) blue;
            }
        }
        return pixels;
    }

    private static int overBlack(int value, int alpha) {
        if (alpha == 255) {
            return value;
        }
        int product = value * alpha * 128 + 0x4000;
        return (((product >> 8) + product) >> 8) >> 7;
    }

    private Pixels fit(Pixels pixels) {
        int width = contract.width;
        int height = contract.height;
        if (contract.fit.equals("stretch")) {
            return resize(pixels, width, height);
        }
        double across = (double) width / pixels.width;
        double down = (double) height / pixels.height;
        double ratio = contract.fit.equals("crop") ? Math.max(across, down) : Math.min(across, down);
        Pixels scaled = resize(pixels, side(pixels.width, ratio, width), side(pixels.height, ratio, height));
        int left = Math.floorDiv(width - scaled.width, 2);
        int top = Math.floorDiv(height - scaled.height, 2);
        Pixels placed = new Pixels(width, height, pixels.channels);
        java.util.Arrays.fill(placed.values, (byte) contract.pad);
        int from = Math.max(0, left);
        int count = (Math.min(width, left + scaled.width) - from) * pixels.channels;
        for (int y = Math.max(0, top); y < Math.min(height, top + scaled.height); y++) {
            int source = ((y - top) * scaled.width + from - left) * pixels.channels;
            System.arraycopy(scaled.values, source, placed.values, (y * width + from) * pixels.channels, count);
        }
        return placed;
    }

    private int side(int side, double ratio, int wanted) {
        int scaled = (int) Math.rint(side * ratio);
        return contract.fit.equals("crop") ? Math.max(scaled, wanted) : Math.max(1, Math.min(scaled, wanted));
    }

    private Pixels resize(Pixels pixels, int width, int height) {
        if (contract.resize.equals("nearest")) {
            return nearest(pixels, width, height);
        }
        Pixels wide = width == pixels.width ? pixels : resample(pixels, width, true);
        return height == pixels.height ? wide : resample(wide, height, false);
    }

    private static Pixels nearest(Pixels pixels, int width, int height) {
        Pixels result = new Pixels(width, height, pixels.channels);
        int[] columns = nearestIndices(pixels.width, width);
        int[] rows = nearestIndices(pixels.height, height);
        for (int y = 0; y < height; y++) {
            for (int x = 0; x < width; x++) {
                int source = (rows[y] * pixels.width + columns[x]) * pixels.channels;
                System.arraycopy(pixels.values, source, result.values, (y * width + x) * pixels.channels, pixels.channels);
            }
        }
        return result;
    }

    private static int[] nearestIndices(int from, int to) {
        int[] indices = new int[to];
        double step = (double) from / to;
        double position = step * 0.5;
        for (int index = 0; index < to; index++) {
            indices[index] = Math.min(from - 1, (int) position);
            position += step;
        }
        return indices;
    }

    private Pixels resample(Pixels pixels, int size, boolean horizontal) {
        int channels = pixels.channels;
        int from = horizontal ? pixels.width : pixels.height;
        int lines = horizontal ? pixels.height : pixels.width;
        Pixels result = horizontal ? new Pixels(size, pixels.height, channels) : new Pixels(pixels.width, size, channels);
        int step = (horizontal ? 1 : pixels.width) * channels;
        for (int target = 0; target < size; target++) {
            Weights weights = weightsFor(target, from, size);
            for (int line = 0; line < lines; line++) {
                int start = horizontal ? line * pixels.width + weights.first : weights.first * pixels.width + line;
                int end = horizontal ? line * size + target : target * pixels.width + line;
                for (int channel = 0; channel < channels; channel++) {
                    int sum = 1 << (PRECISION_BITS - 1);
                    int at = start * channels + channel;
                    for (int weight : weights.values) {
                        sum += (pixels.values[at] & 0xFF) * weight;
                        at += step;
                    }
                    result.values[end * channels + channel] = (byte) Math.max(0, Math.min(255, sum >> PRECISION_BITS));
                }
            }
        }
        return result;
    }

    private Weights weightsFor(int target, int from, int to) {
        double scale = (double) from / to;
        double filterScale = Math.max(scale, 1.0);
        double support = (contract.resize.equals("bicubic") ? 2.0 : 1.0) * filterScale;
        double center = (target + 0.5) * scale;
        int first = Math.max(0, (int) (center - support + 0.5));
        int last = Math.min(from, (int) (center + support + 0.5));
        double[] weights = new double[last - first];
        double total = 0;
        for (int index = 0; index < weights.length; index++) {
            weights[index] = kernel((index + first - center + 0.5) * (1.0 / filterScale));
            total += weights[index];
        }
        int[] fixed = new int[weights.length];
        for (int index = 0; index < fixed.length; index++) {
            double scaled = weights[index] / total * (1 << PRECISION_BITS);
            fixed[index] = (int) (scaled < 0 ? scaled - 0.5 : scaled + 0.5);
        }
        return new Weights(first, fixed);
    }

    private double kernel(double distance) {
        double x = Math.abs(distance);
        if (!contract.resize.equals("bicubic")) {
            return x < 1.0 ? 1.0 - x : 0.0;
        }
        if (x < 1.0) {
            return (1.5 * x - 2.5) * x * x + 1.0;
        }
        return x < 2.0 ? ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 : 0.0;
    }
}
