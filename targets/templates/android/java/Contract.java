package edge_template;

import java.util.Properties;

/**
 * How a picture becomes the tensor that the model was calibrated on: the contract of preprocess.json.
 *
 * A pixel of level p becomes (p * scale - mean) / std, in the order of the channels in {@code color}.
 */
public final class Contract {
    final String color;
    final String layout;
    final String resize;
    final String fit;
    final String dtype;
    final String shortScale;
    final int width;
    final int height;
    final int channels;
    final int pad;
    final double scale;
    final double[] mean;
    final double[] std;

    Contract(Properties facts) {
        color = ModelInfo.text(facts, "contract.color");
        layout = ModelInfo.text(facts, "contract.layout");
        resize = ModelInfo.text(facts, "contract.resize");
        fit = ModelInfo.text(facts, "contract.fit");
        dtype = ModelInfo.text(facts, "contract.dtype");
        shortScale = ModelInfo.text(facts, "contract.scale.short");
        width = ModelInfo.number(facts, "contract.width");
        height = ModelInfo.number(facts, "contract.height");
        pad = ModelInfo.number(facts, "contract.pad");
        channels = color.length();
        scale = Double.parseDouble(ModelInfo.text(facts, "contract.scale"));
        mean = ModelInfo.numbers(facts, "contract.mean.", channels);
        std = ModelInfo.numbers(facts, "contract.std.", channels);
    }

    /** Returns the width of the picture that the model is shown, in pixels. */
    public int width() {
        return width;
    }

    /** Returns the height of the picture that the model is shown, in pixels. */
    public int height() {
        return height;
    }

    /** Returns the order of the channels: RGB, BGR or L (grey). */
    public String color() {
        return color;
    }

    /** Returns NCHW or NHWC. */
    public String layout() {
        return layout;
    }

    /** Returns where the value of one pixel's channel lies in the tensor of {@code layout}. */
    int place(String layout, int pixel, int channel) {
        return layout.equals("NCHW") ? channel * width * height + pixel : pixel * channels + channel;
    }

    /** Returns whether the tensor holds whole numbers, which saturate. */
    boolean isInteger() {
        return dtype.endsWith("int8");
    }

    /** Returns {@code value} rounded half to even and saturated where the tensor holds whole numbers, else as it is. */
    double rounded(double value) {
        if (!isInteger()) {
            return value;
        }
        double lowest = dtype.equals("uint8") ? 0 : -128;
        return Math.max(lowest, Math.min(lowest + 255, Math.rint(value)));
    }
}
