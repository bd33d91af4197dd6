package edge_template;

/** One class with its score. */
public final class Label {
    private final int index;
    private final String name;
    private final double score;

    Label(int index, String name, double score) {
        this.index = index;
        this.name = name;
        this.score = score;
    }

    /** Returns the place of the class in the model's output. */
    public int index() {
        return index;
    }

    /** Returns the name of the class; its index where the recipe gave no names. */
    public String name() {
        return name;
    }

    /** Returns the score as the model gave it: a probability only if the model itself ends in a softmax. */
    public double score() {
        return score;
    }

    @Override
    public String toString() {
        return name + " (" + score + ")";
    }
}
