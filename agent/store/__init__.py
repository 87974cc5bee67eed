"""What the agent must not forget: the resource ledger, the release walker, and the records of other packages, in SQLite.

Only this package imports sqlite3. `schema.py` draws the files, `kinds.py` lists the kinds of resources, `ledger.py` tells how
they are acquired and released, `store.py` opens it all.
"""
