<% if model.score %>
#if canImport(CoreGraphics)
import CoreGraphics
#endif
<% endif %>
#if canImport(%%{contract_module})
@_exported import %%{contract_module}
#endif
