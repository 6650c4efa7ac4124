"""How a task waits: durable verbs on the mesh, parking, ladders, and the inbox of people."""
