<% from "_tensors.jinja" import described %>
    /** Runs the model once. %%{described(inputs)|comment} */
    fun run(
<%- set comma = joiner(", ") %>
<% for input in inputs %>%%{comma()}%%{input.variable}: %%{input.array}<% endfor %>
<% for variable in axes.values() %>%%{comma()}%%{variable}: Long<% endfor %>): Outputs {
        val results = session.run(mapOf(
<%- for input in inputs %>%%{input.spec.name|kotlin_string} to %%{input.variable}%%{"" if loop.last else ", "}<% endfor %>)
<%- if axes %>, mapOf(
<%- for axis, variable in axes.items() %>%%{axis|kotlin_string} to %%{variable}%%{"" if loop.last else ", "}<% endfor %>)
<%- endif %>
)
        return Outputs(
<% for output in outputs %>
            results[%%{output.spec.name|kotlin_string}] as %%{output.array}%%{"" if loop.last else ","}
<% endfor %>
        )
    }
<% if model.takes_pictures %>

    /** Returns the input for one picture: one Int a pixel, 0xAARRGGBB, as `Bitmap.getPixels` gives them. */
    fun prepare(argb: IntArray, width: Int, height: Int): %%{inputs[0].array} = Preprocessing.tensor(argb, width, height) as %%{inputs[0].array}
<% endif %>
<% if model.classifies %>

    /** Returns the `count` best labels for one picture, best first; scores are as the model gives them. */
    fun classify(argb: IntArray, width: Int, height: Int, count: Int = 3): List<Label> = session.classify(argb, width, height, count)
<% endif %>

    override fun close() {
        session.close()
    }

    companion object {
        /** The model's path among the app's assets. */
        const val ASSET: String = %%{model.asset|kotlin_string}
    }
}
