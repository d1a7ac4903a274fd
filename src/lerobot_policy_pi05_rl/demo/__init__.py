"""The demo: a small simulated pick task, scripted operators, a recorder and a closed-loop evaluation.

Importing this package needs neither MuJoCo nor gym-hil; both are imported when a simulator is built.
"""
