"""The command `redundancy`, its knowledge, its exports and the site.

In a clone this package is `tools`. Installed it is `redundancy_atlas`, so that it meets no `tools` of somebody else;
for that its modules import one another relatively. An editable install puts the folder `import-path/` on the path,
which holds the two names under which the clone is imported and nothing else.

    from redundancy_atlas.knowledge import find_root, load

    load(find_root()).entries["token-merging"].axes["relation"].primary
"""
