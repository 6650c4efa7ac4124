"""Things broken on purpose, with figures: each module is a program, and says what it shows."""
