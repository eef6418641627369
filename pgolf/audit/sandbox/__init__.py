"""Processes that see their own files alone: namespaces and a system call filter, as far as the system has them.

launch.py   runs first inside: builds what the process sees, installs the filter, becomes the program
watch.py    the auditor's end of the filter
process.py  starts and ends such a process
"""

from pgolf.audit.sandbox.process import Observed, Sandbox, View, isolation, note

__all__ = ["Observed", "Sandbox", "View", "isolation", "note"]
