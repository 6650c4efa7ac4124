"""The fault suite: a workload, faults and a checker that know nothing of each other."""
