import edge.models.tiny_net.static_wi8_ai8_tflite.GoldenVectors;
import edge.models.tiny_net.static_wi8_ai8_tflite.Label;
import edge.models.tiny_net.static_wi8_ai8_tflite.LiteRtModel;
import edge.models.tiny_net.static_wi8_ai8_tflite.ModelInfo;
import edge.models.tiny_net.static_wi8_ai8_tflite.Picture;
import edge.models.tiny_net.static_wi8_ai8_tflite.Postprocessing;
import edge.models.tiny_net.static_wi8_ai8_tflite.Preprocessing;
import java.io.FileInputStream;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** What a mobile engineer's first program does: check the file, run it, replay the golden vectors, make every mistake. */
public final class GoldenReplay {
    private static PrintStream out;

    public static void main(String[] arguments) throws Exception {
        out = new PrintStream(System.out, true, "UTF-8");
        ModelInfo info = ModelInfo.get();
        out.println(info.name() + " " + info.version() + " " + info.artifact() + " " + info.labels());
        GoldenVectors golden = GoldenVectors.read();
        out.println("samples " + golden.size() + " pictures " + golden.hasPictures());
        say("right", golden.preparationMistakes(Preprocessing::tensor));
        say("red for blue", golden.preparationMistakes((argb, width, height) -> {
            int[] swapped = argb.clone();
            for (int index = 0; index < argb.length; index++) {
                int color = argb[index];
                swapped[index] = color & 0xFF00FF00 | (color & 255) << 16 | (color >> 16) & 255;
            }
            return Preprocessing.tensor(swapped, width, height);
        }));
        say("upside down", golden.preparationMistakes((argb, width, height) -> {
            List<Integer> turned = new ArrayList<>();
            for (int color : argb) {
                turned.add(0, color);
            }
            return Preprocessing.tensor(turned.stream().mapToInt(Integer::intValue).toArray(), width, height);
        }));
        byte[] model = ModelInfo.bytes(new FileInputStream(arguments[0] + "/" + info.asset()));
        try (LiteRtModel runner = new LiteRtModel(model, 1)) {
            say("answers", golden.answerMistakes((inputs, axes) -> runner.run(inputs)));
            say("worse answers", golden.answerMistakes((inputs, axes) -> {
                Map<String, Object> answers = runner.run(inputs);
                ((float[]) answers.get("logits"))[1] += 0.375f;
                return answers;
            }));
            say("no answers", golden.answerMistakes((inputs, axes) -> Collections.<String, Object>emptyMap()));
            Picture picture = Picture.ofPng(golden.pictures(0).get("image"));
            for (Label label : runner.classify(picture.argb(), picture.width(), picture.height(), 2)) {
                out.println(label.index() + " " + label);
            }
            refuse(() -> runner.run(Collections.singletonMap("image", new byte[60])));
            refuse(() -> runner.run(Collections.singletonMap("image", new float[59])));
            refuse(() -> runner.run(Collections.<String, Object>emptyMap()));
        }
        model[0] ^= 1;
        refuse(() -> new LiteRtModel(model, 1));
        refuse(() -> Preprocessing.tensor(new int[5], 2, 3));
        refuse(() -> Picture.ofPng(new byte[] {1, 2, 3, 4, 5, 6, 7, 8, 9}));
        refuse(() -> Postprocessing.top(new double[2], info.labels(), 1));
        out.println(Postprocessing.top(new double[] {1, Double.NaN, 1}, info.labels(), 9).get(2).index());
        out.println(java.util.Arrays.toString(Postprocessing.softmax(new double[] {1000, 1000})));
    }

    private interface Action {
        void run() throws Exception;
    }

    private static void refuse(Action action) {
        try {
            action.run();
            out.println("not refused");
        } catch (Exception error) {
            out.println(error.getClass().getSimpleName() + ": " + error.getMessage());
        }
    }

    private static void say(String what, List<String> mistakes) {
        out.println(what + ": " + mistakes);
    }
}
