<% macro one_picture() %>%%{model.inputs[0].variable}: pixels<% for axis in model.axes.values() %>, %%{axis.variable}: 1<% endfor %><% endmacro %>
<% if model.score %>

    /// Returns every class, best first, for a picture of four bytes a pixel (see `%%{prefix}Preprocessing.tensor`).
    public func classify(rgba: [UInt8], width: Int, height: Int) throws -> [%%{prefix}Score] {
        let pixels = %%{prefix}Preprocessing.tensor(rgba: rgba, width: width, height: height)
        return %%{prefix}Score.ranked(try run(%%{one_picture()}).%%{model.score})
    }

    #if canImport(CoreGraphics)
    /// Returns every class, best first, for an upright picture: a `CGImage` does not know its orientation.
    public func classify(_ image: CGImage) throws -> [%%{prefix}Score] {
        let pixels = try %%{prefix}Preprocessing.tensor(image)
        return %%{prefix}Score.ranked(try run(%%{one_picture()}).%%{model.score})
    }
    #endif
<% endif %>
