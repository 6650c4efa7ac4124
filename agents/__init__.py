"""Reference agents. They do real work, and import `mesh` and `contracts` only, as anybody's agents would."""
