package standin;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Plays back answers: the folder that the system property standin.recorded names holds one folder a sample, with the bytes
 * of every input (in.NAME) and output (out.NAME). Without the property a model answers what it was fed.
 */
public final class Recorded {
    private Recorded() {}

    /** Returns the bytes of every output by name for the bytes of every input. */
    public static Map<String, byte[]> answers(Map<String, byte[]> inputs) {
        String folder = System.getProperty("standin.recorded");
        if (folder == null) {
            return inputs;
        }
        try {
            for (File sample : new File(folder).listFiles()) {
                if (isFor(sample, inputs)) {
                    Map<String, byte[]> outputs = new LinkedHashMap<>();
                    for (File file : sample.listFiles()) {
                        if (file.getName().startsWith("out.")) {
                            outputs.put(file.getName().substring(4), Files.readAllBytes(file.toPath()));
                        }
                    }
                    return outputs;
                }
            }
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
        throw new IllegalStateException("no recorded sample has these inputs: " + inputs.keySet());
    }

    private static boolean isFor(File sample, Map<String, byte[]> inputs) throws IOException {
        for (Map.Entry<String, byte[]> input : inputs.entrySet()) {
            File file = new File(sample, "in." + input.getKey());
            if (!file.exists() || !Arrays.equals(Files.readAllBytes(file.toPath()), input.getValue())) {
                return false;
            }
        }
        return true;
    }

    /** Returns what remains in a buffer of bytes, without moving its position. */
    public static byte[] bytes(ByteBuffer buffer) {
        byte[] content = new byte[buffer.remaining()];
        buffer.duplicate().get(content);
        return content;
    }
}
