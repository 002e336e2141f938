"""Where the time goes: each stage alone, the whole line, and the line with one stage taken out at a time."""
