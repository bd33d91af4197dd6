package edge_template;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Map;

/** Turns what the model answered into labels. */
public final class Postprocessing {
    private Postprocessing() {}

    /** Returns the {@code count} highest scores of the model's first output, best first, with the names of the classes. */
    public static List<Label> top(Map<String, ?> answers, int count) {
        ModelInfo info = ModelInfo.get();
        ModelInfo.Tensor scores = info.outputs().get(0);
        return top(Tensors.values(answers.get(scores.name()), scores.dtype()), info.labels(), count);
    }

    /** Returns the {@code count} highest {@code scores}, best first; equal ones in order, NaN last. */
    public static List<Label> top(double[] scores, List<String> names, int count) {
        if (!names.isEmpty() && names.size() != scores.length) {
            throw new IllegalArgumentException(scores.length + " scores do not go with " + names.size() + " labels");
        }
        List<Label> labels = new ArrayList<Label>();
        for (int index = 0; index < scores.length; index++) {
            labels.add(new Label(index, names.isEmpty() ? Integer.toString(index) : names.get(index), scores[index]));
        }
        Collections.sort(labels, new Comparator<Label>() {
            @Override
            public int compare(Label one, Label other) {
                return Double.compare(order(other), order(one));
            }
        });
        return new ArrayList<Label>(labels.subList(0, Math.max(0, Math.min(count, labels.size()))));
    }

    private static double order(Label label) {
        return Double.isNaN(label.score()) ? Double.NEGATIVE_INFINITY : label.score();
    }

    /** Returns probabilities for {@code scores} that are logits; a model that ends in a softmax needs none. */
    public static double[] softmax(double[] scores) {
        double largest = Double.NEGATIVE_INFINITY;
        for (double score : scores) {
            largest = Math.max(largest, score);
        }
        double[] probabilities = new double[scores.length];
        double total = 0;
        for (int index = 0; index < scores.length; index++) {
            probabilities[index] = Math.exp(scores[index] - largest);
            total += probabilities[index];
        }
        for (int index = 0; index < scores.length; index++) {
            probabilities[index] /= total;
        }
        return probabilities;
    }
}
