"""Everything that reads or writes MRML nodes, on the scene that it is given. No Qt."""
