"""The schema, step by step (Alembic). A released step is never edited; packages add steps of their own in
versions/.
"""
