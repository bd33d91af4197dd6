<% from "_tensors.jinja" import described %>
    /// Runs the model once. %%{described(model.inputs)|comment}
    public func run(
<%- set comma = joiner(", ") %>
<% for input in model.inputs %>%%{comma()}%%{input.variable}: [%%{input.element.swift}]<% endfor %>
<% for axis in model.axes.values() %>%%{comma()}%%{axis.variable}: Int<% endfor %>) throws -> Outputs {
