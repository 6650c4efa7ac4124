"""Game days: a workload, a seeded schedule of faults, and the checker's verdict, on a stage that any of them fits.

    async with local_stage(folder, nodes=1, peers=4, seed=7, settings=settings, command=command) as scene:
        report = await play(Plan(minutes=3, seed=7), scene, BuiltIn(seed=7))
    assert not report.violations

`catalogue` has every fault by name, `schedule` decides what strikes when, `workloads` what is asked for, `stage` where
it plays, `game_day` plays it, `peer` is what a peer process does. `mesh chaos` is the command.
"""
