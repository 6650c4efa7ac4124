"""Who may do what in a mesh: from what agents declare to the least permissions they need, as a server's configuration.

Nothing here reads a file or opens a connection; `mesh auth` does. An access file says who there is (`access`), from
which the rights of each user follow (`rights`), and from those the accounts of a nats-server (`accounts`).
"""
