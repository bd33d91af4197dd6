package edge_template;

import java.math.BigDecimal;
import java.math.RoundingMode;

/**
 * What is wrong with a tensor that should have been made from a picture: its cause by name, from the numbers alone.
 *
 * An app that shows a network blue where it learned red answers plausibly, and worse. The usual mistakes are tried one
 * after the other, single ones first; the rules and the words are those of a bundle's replay on other platforms.
 */
public final class Mistake {
    // Two decoders, or two ways of rounding, differ by so many grey levels; the thousandth is float32's own rounding.
    private static final double AGREEING_LEVELS = 2.001;
    private static final double SAME_LEVELS = 0.01;
    private static final String[] WAYS = {"", "range", "scaled-twice", "normalisation", "raw"};

    private final String code;
    private final String says;

    private Mistake(String code, String says) {
        this.code = code;
        this.says = says;
    }

    /** Returns ok, size, not-finite, resize, or one or several of color, layout, range, scaled-twice, normalisation, raw. */
    public String code() {
        return code;
    }

    /** Returns the same in a sentence. */
    public String says() {
        return says;
    }

    @Override
    public String toString() {
        return code + ": " + says;
    }

    /** A way from grey levels to values, (level * scale - mean) / std, with what else may be wrong, flat as it lies. */
    private static final class Candidate {
        final String code;
        final String says;
        final double[] values;
        final double[] levels;

        Candidate(Contract contract, double[] pixels, String way, boolean isSwapped, boolean isMoved) {
            String color = contract.color.equals("RGB") ? "BGR" : "RGB";
            String layout = !isMoved ? contract.layout : contract.layout.equals("NCHW") ? "NHWC" : "NCHW";
            code = joined("+", way, isSwapped ? "color" : "", isMoved ? "layout" : "");
            says = joined("; and ", sentence(contract, way),
                    isSwapped ? "channels are in the order " + color + " instead of " + contract.color : "",
                    isMoved ? "the tensor is laid out " + layout + " instead of " + contract.layout : "");
            values = new double[pixels.length];
            levels = new double[pixels.length];
            for (int pixel = 0; pixel < contract.width * contract.height; pixel++) {
                for (int channel = 0; channel < contract.channels; channel++) {
                    double scale = scale(contract, way);
                    boolean isNormalised = !way.equals("normalisation") && !way.equals("raw");
                    double mean = isNormalised ? contract.mean[channel] : 0;
                    double std = isNormalised ? contract.std[channel] : 1;
                    int source = isSwapped ? contract.channels - 1 - channel : channel;
                    double value = (pixels[pixel * contract.channels + source] * scale - mean) / std;
                    int place = contract.place(layout, pixel, channel);
                    values[place] = contract.rounded(value);
                    levels[place] = level(contract, channel, Math.abs(scale / std), value);
                }
            }
        }

        boolean agrees(double[] others, double[] levels, double count) {
            for (int index = 0; index < values.length; index++) {
                // Written so that nothing agrees with NaN, which stands for a level beyond what the type can hold.
                if (!(Math.abs(values[index] - others[index]) <= count * levels[index])) {
                    return false;
                }
            }
            return true;
        }
    }

    /** Names what turned the tensor {@code expected}, which {@code contract} makes of a picture, into {@code got}. */
    public static Mistake name(Contract contract, double[] expected, double[] got) {
        if (got.length != expected.length) {
            return new Mistake("size", "the tensor has " + got.length + " values, the model takes " + expected.length);
        }
        int broken = 0;
        double[] found = new double[got.length];
        for (int index = 0; index < got.length; index++) {
            broken += Double.isNaN(got[index]) || Double.isInfinite(got[index]) ? 1 : 0;
            found[index] = contract.rounded(got[index]);
        }
        if (broken > 0) {
            return new Mistake("not-finite", broken + " of its " + got.length + " values are not finite numbers");
        }
        double[] levels = levels(contract, expected);
        double largest = 0;
        double total = 0;
        for (int index = 0; index < found.length; index++) {
            double difference = Math.abs(found[index] - expected[index]) / levels[index];
            largest = Math.max(largest, difference);
            total += difference;
        }
        if (largest <= AGREEING_LEVELS) {
            return new Mistake("ok", "the tensor agrees with the golden one");
        }
        double[] pixels = pixels(contract, expected);
        for (int causes = 1; causes <= 3; causes++) {
            for (String way : WAYS) {
                for (int both = 0; both < 4; both++) {
                    boolean isMoved = both >= 2;
                    boolean isSwapped = both % 2 == 1;
                    int count = (way.isEmpty() ? 0 : 1) + (isMoved ? 1 : 0) + (isSwapped ? 1 : 0);
                    if (count != causes || (isSwapped && contract.channels != 3)) {
                        continue;
                    }
                    Candidate mistake = new Candidate(contract, pixels, way, isSwapped, isMoved);
                    // What changes nothing is no mistake under this contract, or none that this picture shows.
                    if (!mistake.agrees(expected, levels, SAME_LEVELS)
                            && mistake.agrees(found, mistake.levels, AGREEING_LEVELS)) {
                        return new Mistake(mistake.code, mistake.says);
                    }
                }
            }
        }
        return new Mistake("resize", "the picture differs by " + decimal(largest) + " grey levels at most, "
                + decimal(total / found.length) + " on average: another resize, fit or orientation than " + contract.resize
                + "/" + contract.fit);
    }

    private static double scale(Contract contract, String way) {
        switch (way) {
            case "range":
            case "raw":
                return 1;
            case "scaled-twice":
                return contract.scale * contract.scale;
            default:
                return contract.scale;
        }
    }

    private static String sentence(Contract contract, String way) {
        switch (way) {
            case "range":
                return "pixels are 0..255 where they should have been multiplied by " + contract.shortScale;
            case "scaled-twice":
                return "pixels were multiplied by " + contract.shortScale + " twice";
            case "normalisation":
                return "mean and std were not applied";
            case "raw":
                return "pixels are given as they are: neither scaled nor normalised";
            default:
                return "";
        }
    }

    /**
     * Returns how much one grey level is at {@code value}, where it is {@code size} before rounding: at least one step of
     * the type there. What the steps of whole numbers hid is hidden in everything that is computed from them.
     */
    private static double level(Contract contract, int channel, double size, double value) {
        if (contract.isInteger()) {
            return Math.max(size * Math.max(Math.abs(contract.std[channel] / contract.scale), 1), 1);
        }
        return Math.max(size, Tensors.step(contract.dtype, value));
    }

    private static double[] levels(Contract contract, double[] expected) {
        double[] levels = new double[expected.length];
        for (int pixel = 0; pixel < contract.width * contract.height; pixel++) {
            for (int channel = 0; channel < contract.channels; channel++) {
                int place = contract.place(contract.layout, pixel, channel);
                double size = Math.abs(contract.scale / contract.std[channel]);
                levels[place] = level(contract, channel, size, expected[place]);
            }
        }
        return levels;
    }

    /** Returns the grey levels, pixel by pixel, that the right tensor was computed from. */
    private static double[] pixels(Contract contract, double[] expected) {
        double[] pixels = new double[expected.length];
        for (int pixel = 0; pixel < contract.width * contract.height; pixel++) {
            for (int channel = 0; channel < contract.channels; channel++) {
                double value = expected[contract.place(contract.layout, pixel, channel)];
                pixels[pixel * contract.channels + channel] =
                        (value * contract.std[channel] + contract.mean[channel]) / contract.scale;
            }
        }
        return pixels;
    }

    private static String joined(String by, String... parts) {
        StringBuilder text = new StringBuilder();
        for (String part : parts) {
            text.append(text.length() == 0 || part.isEmpty() ? "" : by).append(part);
        }
        return text.toString();
    }

    private static String decimal(double value) {
        if (Double.isNaN(value) || Double.isInfinite(value)) {
            return Double.isNaN(value) ? "nan" : "inf";
        }
        return new BigDecimal(value).setScale(1, RoundingMode.HALF_EVEN).toPlainString();
    }
}
