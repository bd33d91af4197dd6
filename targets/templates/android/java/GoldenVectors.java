package edge_template;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/**
 * Real inputs with the answers that the build recorded, to replay in an app: pictures first, then tensors.
 *
 * Every method returns what differs, one sentence each, so that an empty list is a pass.
 */
public final class GoldenVectors {
    private static final String FOLDER = "/edge_template/golden/";
    // How numpy spells the types that models take, little-endian.
    private static final String[][] DTYPES = {
        {"<f4", "float32"}, {"<f8", "float64"}, {"<f2", "float16"}, {"<i8", "int64"}, {"<i4", "int32"}, {"<i2", "int16"},
        {"|i1", "int8"}, {"|u1", "uint8"}, {"|b1", "bool"},
    };

    /** The app's way from pixels to the model's input. */
    public interface Preparing {
        /** Returns the model's input for one picture, as {@link Preprocessing#tensor} does. */
        Object prepare(int[] argb, int width, int height) throws Exception;
    }

    /** The app's way from a picture's file to pixels. */
    public interface Decoding {
        /** Returns the pixels of a PNG. */
        Picture decode(byte[] png) throws Exception;
    }

    /** The app's way to run the model. */
    public interface Running {
        /** Returns every output by name; {@code axes} has the size of every axis that has a name. */
        Map<String, ?> run(Map<String, Object> inputs, Map<String, Long> axes) throws Exception;
    }

    /** An array as numpy wrote it. */
    private static final class Stored {
        final String dtype;
        final long[] shape;
        final Object array;

        Stored(String dtype, long[] shape, Object array) {
            this.dtype = dtype;
            this.shape = shape;
            this.array = array;
        }

        double[] values() {
            return Tensors.values(array, dtype);
        }
    }

    private final ModelInfo info;
    private final Properties facts;

    private GoldenVectors(ModelInfo info, Properties facts) {
        this.info = info;
        this.facts = facts;
    }

    /** Returns the golden vectors of the model; IllegalStateException where they are missing, or are another file's. */
    public static GoldenVectors read() {
        ModelInfo info = ModelInfo.get();
        Properties facts = ModelInfo.read(FOLDER + "golden.properties");
        String recorded = ModelInfo.text(facts, "sha256");
        if (!recorded.equals(info.sha256())) {
            throw new IllegalStateException("the golden vectors are those of another file (SHA-256 " + recorded
                    + "): give them the version of the model, " + info.version());
        }
        return new GoldenVectors(info, facts);
    }

    /** Returns how many samples there are. */
    public int size() {
        return ModelInfo.number(facts, "samples");
    }

    /** Returns whether the samples start from pictures; those of models that take tensors, and of old bundles, do not. */
    public boolean hasPictures() {
        return !pictures(0).isEmpty();
    }

    /** Returns the PNG that one sample starts from, by the name of the input; empty where it starts from tensors. */
    public Map<String, byte[]> pictures(int sample) {
        Map<String, byte[]> found = new LinkedHashMap<String, byte[]>();
        for (int index = 0; index < info.inputs().size(); index++) {
            String file = facts.getProperty("sample." + sample + ".raw." + index);
            if (file != null) {
                found.put(info.inputs().get(index).name(), content(file));
            }
        }
        return found;
    }

    /** Returns what {@code app} does otherwise to the golden pictures than calibration did, its cause by name. */
    public List<String> preparationMistakes(Preparing app) throws Exception {
        return preparationMistakes(new Decoding() {
            @Override
            public Picture decode(byte[] png) throws IOException {
                return Picture.ofPng(png);
            }
        }, app);
    }

    /** Returns the same, with pictures that the app decodes too. */
    public List<String> preparationMistakes(Decoding decoder, Preparing app) throws Exception {
        List<String> found = new ArrayList<String>();
        for (int sample = 0; sample < size(); sample++) {
            Map<String, Stored> inputs = stored(sample, "input", info.inputs());
            for (Map.Entry<String, byte[]> picture : pictures(sample).entrySet()) {
                Picture decoded = decoder.decode(picture.getValue());
                Object tensor = app.prepare(decoded.argb(), decoded.width(), decoded.height());
                double[] got = Tensors.values(tensor, info.contract().dtype);
                Mistake mistake = Mistake.name(info.contract(), inputs.get(picture.getKey()).values(), got);
                if (!mistake.code().equals("ok")) {
                    found.add("golden picture " + sample + " of input " + picture.getKey() + ": " + mistake);
                }
            }
        }
        return found;
    }

    /** Returns where the answers of {@code app} are further from the recorded ones than another machine's may be. */
    public List<String> answerMistakes(Running app) throws Exception {
        List<String> found = new ArrayList<String>();
        for (int sample = 0; sample < size(); sample++) {
            Map<String, Object> inputs = new LinkedHashMap<String, Object>();
            Map<String, Long> axes = new LinkedHashMap<String, Long>();
            Map<String, Stored> given = stored(sample, "input", info.inputs());
            for (ModelInfo.Tensor tensor : info.inputs()) {
                Stored array = given.get(tensor.name());
                inputs.put(tensor.name(), array.array);
                for (int axis = 0; axis < array.shape.length; axis++) {
                    if (tensor.axis(axis) != null) {
                        axes.put(tensor.axis(axis), array.shape[axis]);
                    }
                }
            }
            Map<String, ?> answers = app.run(inputs, axes);
            for (String kind : new String[] {"output", "reference"}) {
                double allowed = Double.parseDouble(ModelInfo.text(facts, "tolerance." + kind));
                for (Map.Entry<String, Stored> wanted : stored(sample, kind, info.outputs()).entrySet()) {
                    compare(found, sample, kind, wanted.getKey(), wanted.getValue().values(), answers, allowed);
                }
            }
        }
        return found;
    }

    private void compare(List<String> found, int sample, String kind, String name, double[] wanted, Map<String, ?> answers,
            double allowed) {
        String dtype = "";
        for (ModelInfo.Tensor tensor : info.outputs()) {
            dtype = tensor.name().equals(name) ? tensor.dtype() : dtype;
        }
        String where = "golden sample " + sample + ", output " + name + ": ";
        if (answers.get(name) == null) {
            found.add(where + "no answer");
            return;
        }
        double[] got = Tensors.values(answers.get(name), dtype);
        double largest = got.length == wanted.length ? 0 : Double.NaN;
        for (int index = 0; index < got.length && index < wanted.length; index++) {
            double difference = got[index] == wanted[index] ? 0 : Math.abs(got[index] - wanted[index]);
            largest = Math.max(largest, difference);
        }
        if (!(largest <= allowed)) {
            String whose = kind.equals("output") ? "this file's answer in the build" : "the float model's answer";
            found.add(where + (got.length == wanted.length
                    ? "differs from " + whose + " by " + largest + ", where " + allowed + " is allowed"
                    : got.length + " values instead of " + wanted.length));
        }
    }

    private Map<String, Stored> stored(int sample, String kind, List<ModelInfo.Tensor> tensors) {
        Map<String, Stored> found = new LinkedHashMap<String, Stored>();
        for (int index = 0; index < tensors.size(); index++) {
            String file = facts.getProperty("sample." + sample + "." + kind + "." + index);
            if (file != null) {
                found.put(tensors.get(index).name(), array(file, content(file)));
            }
        }
        return found;
    }

    private static byte[] content(String file) {
        try {
            InputStream stream = GoldenVectors.class.getResourceAsStream(FOLDER + file);
            if (stream == null) {
                throw new IllegalStateException("golden vector " + file + " is missing");
            }
            return ModelInfo.bytes(stream);
        } catch (IOException error) {
            throw new IllegalStateException("golden vector " + file + " cannot be read", error);
        }
    }

    /** Returns the array in a .npy file, version 1 to 3 of the format, C order. */
    private static Stored array(String file, byte[] npy) {
        ByteBuffer bytes = ByteBuffer.wrap(npy).order(ByteOrder.LITTLE_ENDIAN);
        int start = npy.length < 12 ? 0 : npy[6] == 1 ? 10 : 12;
        long length = start == 10 ? bytes.getShort(8) & 0xFFFF : start == 12 ? bytes.getInt(8) & 0xFFFFFFFFL : 0;
        if (start == 0 || bytes.getInt(0) != 0x4D554E93 || start + length > npy.length) {
            throw new IllegalStateException("golden vector " + file + " is no .npy array");
        }
        String header = new String(npy, start, (int) length, StandardCharsets.ISO_8859_1);
        String[] sizes = between(header, "'shape': (", ")").replace(" ", "").split(",");
        List<Long> shape = new ArrayList<Long>();
        for (String size : sizes) {
            if (!size.isEmpty()) {
                shape.add(Long.parseLong(size));
            }
        }
        long[] axes = new long[shape.size()];
        for (int axis = 0; axis < axes.length; axis++) {
            axes[axis] = shape.get(axis);
        }
        bytes.position((int) (start + length));
        String descr = between(header, "'descr': '", "'");
        for (String[] dtype : DTYPES) {
            if (dtype[0].equals(descr) && header.contains("'fortran_order': False")) {
                return new Stored(dtype[1], axes, Tensors.array(bytes, dtype[1]));
            }
        }
        throw new IllegalStateException("golden vector " + file + " holds " + descr + ", which is not read");
    }

    private static String between(String text, String before, String after) {
        int start = text.indexOf(before) + before.length();
        return text.indexOf(before) < 0 ? "" : text.substring(start, text.indexOf(after, start));
    }
}
