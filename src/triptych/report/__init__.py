"""Run directories in, tables and figures out. Imports neither torch nor Lightning.

    read (triptych.runs.read) -> compare -> verdict -> figures, curves -> panels, details -> render | terminal

Rendered again and again while a sweep goes on, by the process that runs it: `render.write_report(root)`.
"""
