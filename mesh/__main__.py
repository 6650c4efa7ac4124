"""`python -m mesh`: the command line, where its script is not on the path."""

from mesh.cli.entry import main

main()
