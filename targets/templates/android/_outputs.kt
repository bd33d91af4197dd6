    /** The answer to one inference. Tensors are row-major; float16 and one-byte types are raw bytes. */
    class Outputs(
<% for output in outputs %>
        val %%{output.variable}: %%{output.array}%%{"" if loop.last else ","}
<% endfor %>
    )
