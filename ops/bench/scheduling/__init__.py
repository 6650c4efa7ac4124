"""Parts of `ops.bench.schedule`: fleets and traces, policies, peer processes, figures."""
