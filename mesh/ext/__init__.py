"""Other frameworks on the mesh, each behind an extra of its own."""
