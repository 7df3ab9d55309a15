"""What every domain stands on: errors, config, plugins, records, files, events. Imports nothing else of danlu.

``device`` is the one module here that imports torch; only the torch side imports it.
"""
