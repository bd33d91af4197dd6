package edge_template;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Properties;

/** What the validated file is: its name, its digest, what goes in, what comes out, and what the answers are called. */
public final class ModelInfo {
    // Absolute, so that it stays right when a shrinker renames this class.
    private static final String RESOURCE = "/edge_template/model.properties";
    private static ModelInfo loaded;

    /** One input or output of the model. */
    public static final class Tensor {
        private final String name;
        private final String dtype;
        private final long[] shape;
        private final String[] axes;

        Tensor(Properties facts, String key) {
            name = text(facts, key + "name");
            dtype = text(facts, key + "dtype");
            int rank = number(facts, key + "rank");
            shape = new long[rank];
            axes = new String[rank];
            for (int axis = 0; axis < rank; axis++) {
                axes[axis] = facts.getProperty(key + "axis." + axis);
                shape[axis] = axes[axis] == null ? Long.parseLong(text(facts, key + "size." + axis)) : -1;
            }
        }

        /** Returns the name by which the runtime knows it. */
        public String name() {
            return name;
        }

        /** Returns the type of its values, for example {@code float32}. */
        public String dtype() {
            return dtype;
        }

        /** Returns its shape, with -1 for every axis that has a name instead of a size. */
        public long[] shape() {
            return shape.clone();
        }

        /** Returns the name of one axis, or null where it has a size. */
        public String axis(int number) {
            return axes[number];
        }
    }

    private final Properties facts;
    private final List<Tensor> inputs;
    private final List<Tensor> outputs;
    private final List<String> labels;

    /** Reads what {@code model.properties} holds. */
    public ModelInfo(Properties facts) {
        this.facts = facts;
        inputs = tensors(facts, "input");
        outputs = tensors(facts, "output");
        List<String> names = new ArrayList<String>();
        for (int index = 0; index < number(facts, "labels"); index++) {
            names.add(text(facts, "label." + index));
        }
        labels = Collections.unmodifiableList(names);
    }

    /** Returns what is known of the model that these classes came with. */
    public static synchronized ModelInfo get() {
        if (loaded == null) {
            loaded = new ModelInfo(read(RESOURCE));
        }
        return loaded;
    }

    /** Returns the model's name, for example {@code digits-cnn}. */
    public String name() {
        return text(facts, "name");
    }

    /** Returns the model's version. */
    public String version() {
        return text(facts, "version");
    }

    /** Returns what form of the model the file is, for example {@code tflite:static_wi8_ai8}. */
    public String artifact() {
        return text(facts, "artifact");
    }

    /** Returns the path of the file among the app's assets: {@code context.getAssets().open(...)}. */
    public String asset() {
        return text(facts, "asset");
    }

    /** Returns the SHA-256 of the file that was validated, in hexadecimal digits. */
    public String sha256() {
        return text(facts, "sha256");
    }

    /** Returns the inputs, in the order of the file's signature. */
    public List<Tensor> inputs() {
        return inputs;
    }

    /** Returns the outputs, in the order of the file's signature. */
    public List<Tensor> outputs() {
        return outputs;
    }

    /** Returns the names of the classes; empty where the recipe gave none. */
    public List<String> labels() {
        return labels;
    }

    /** Returns how a picture becomes the input, or null where the model takes tensors as they are. */
    public Contract contract() {
        return "image".equals(text(facts, "contract.kind")) ? new Contract(facts) : null;
    }

    /** Throws IllegalArgumentException unless {@code model} holds exactly the bytes that were validated. */
    public void requireValidated(ByteBuffer model) {
        String found = digest(model);
        if (!found.equals(sha256())) {
            throw new IllegalArgumentException(text(facts, "file") + " is not the file that was validated: its SHA-256 is "
                    + found + ", not " + sha256() + "; another asset was opened, or the build changed it");
        }
    }

    /** Returns all bytes of {@code stream}, and closes it. */
    public static byte[] bytes(InputStream stream) throws IOException {
        try {
            ByteArrayOutputStream content = new ByteArrayOutputStream();
            byte[] part = new byte[65536];
            for (int count = stream.read(part); count >= 0; count = stream.read(part)) {
                content.write(part, 0, count);
            }
            return content.toByteArray();
        } finally {
            stream.close();
        }
    }

    static Properties read(String resource) {
        Properties facts = new Properties();
        try (InputStream stream = ModelInfo.class.getResourceAsStream(resource)) {
            if (stream == null) {
                throw new IllegalStateException(resource + " is missing: the packaging of the app left out Java resources,"
                        + " or the artifact that holds it is no dependency");
            }
            facts.load(stream);
        } catch (IOException error) {
            throw new IllegalStateException(resource + " cannot be read", error);
        }
        return facts;
    }

    static String text(Properties facts, String key) {
        String value = facts.getProperty(key);
        if (value == null) {
            throw new IllegalStateException("the properties lack " + key);
        }
        return value;
    }

    static int number(Properties facts, String key) {
        return Integer.parseInt(text(facts, key));
    }

    static double[] numbers(Properties facts, String key, int count) {
        double[] values = new double[count];
        for (int index = 0; index < count; index++) {
            values[index] = Double.parseDouble(text(facts, key + index));
        }
        return values;
    }

    private static List<Tensor> tensors(Properties facts, String kind) {
        List<Tensor> found = new ArrayList<Tensor>();
        for (int index = 0; index < number(facts, kind + "s"); index++) {
            found.add(new Tensor(facts, kind + "." + index + "."));
        }
        return Collections.unmodifiableList(found);
    }

    private static String digest(ByteBuffer content) {
        try {
            MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
            sha256.update(content.duplicate());
            StringBuilder digits = new StringBuilder();
            for (byte value : sha256.digest()) {
                digits.append(Character.forDigit((value >> 4) & 15, 16)).append(Character.forDigit(value & 15, 16));
            }
            return digits.toString();
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException("this system has no SHA-256", error);
        }
    }
}
