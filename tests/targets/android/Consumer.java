import edge.models.tiny_net.static_wi8_ai8_tflite.Contract;
import edge.models.tiny_net.static_wi8_ai8_tflite.Mistake;
import edge.models.tiny_net.static_wi8_ai8_tflite.ModelInfo;
import edge.models.tiny_net.static_wi8_ai8_tflite.Preprocessing;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Properties;

/** Answers a file of cases: pictures to prepare, tensors to judge; each under a contract of its own. */
public final class Consumer {
    public static void main(String[] arguments) throws IOException {
        try (DataInputStream input = new DataInputStream(new BufferedInputStream(new FileInputStream(arguments[0])));
                DataOutputStream output =
                        new DataOutputStream(new BufferedOutputStream(new FileOutputStream(arguments[1])))) {
            for (int cases = input.readInt(); cases > 0; cases--) {
                Properties facts = new Properties();
                facts.load(new ByteArrayInputStream(block(input)));
                Contract contract = new ModelInfo(facts).contract();
                byte[] answer = input.readBoolean() ? prepare(input, contract) : name(input, contract);
                output.writeInt(answer.length);
                output.write(answer);
            }
        }
    }

    private static byte[] prepare(DataInputStream input, Contract contract) throws IOException {
        int width = input.readInt();
        int height = input.readInt();
        int[] argb = new int[width * height];
        for (int index = 0; index < argb.length; index++) {
            argb[index] = input.readInt();
        }
        Object tensor = new Preprocessing(contract).prepare(argb, width, height);
        if (tensor instanceof byte[]) {
            return (byte[]) tensor;
        }
        float[] values = (float[]) tensor;
        byte[] bytes = new byte[4 * values.length];
        for (int index = 0; index < values.length; index++) {
            int bits = Float.floatToRawIntBits(values[index]);
            for (int part = 0; part < 4; part++) {
                bytes[4 * index + part] = (byte) (bits >> 8 * part);
            }
        }
        return bytes;
    }

    private static byte[] name(DataInputStream input, Contract contract) throws IOException {
        Mistake mistake = Mistake.name(contract, doubles(input), doubles(input));
        return (mistake.code() + "\n" + mistake.says()).getBytes(StandardCharsets.UTF_8);
    }

    private static double[] doubles(DataInputStream input) throws IOException {
        double[] values = new double[input.readInt()];
        for (int index = 0; index < values.length; index++) {
            values[index] = input.readDouble();
        }
        return values;
    }

    private static byte[] block(DataInputStream input) throws IOException {
        byte[] content = new byte[input.readInt()];
        input.readFully(content);
        return content;
    }
}
