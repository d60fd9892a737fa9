"""Calls, their legs and who was rung why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0001"
down_revision = None
branch_labels = ("intercom",)
depends_on = "s0001"


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        sa.Column("opened_for", sa.Text, unique=True),
        sa.Column("alarm_id", sa.Text, index=True),
        sa.Column("incident_id", sa.Text, index=True),
        sa.Column("place_label", sa.Text, nullable=False),
        sa.Column("lat", sa.Float),
        sa.Column("lon", sa.Float),
        sa.Column("lineage", sa.Text, nullable=False),
        sa.Column("grid", sa.Text),
        sa.Column("opened_by", sa.Text),
        sa.Column("rings", sa.Text, nullable=False),
        sa.Column("picked", sa.Text, nullable=False),
        sa.Column("cycle", sa.Integer, nullable=False),
        sa.Column("redial", sa.Boolean, nullable=False),
        sa.Column("ring_started_at", sa.BigInteger, nullable=False),
        sa.Column("ranked_at", sa.BigInteger),
        sa.Column("told_nobody", sa.Boolean, nullable=False),
        sa.Column("answered_by", sa.Text),
        sa.Column("answered_at", sa.BigInteger),
        sa.Column("active_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("end_reason", sa.Text),
    )
    still_open = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_calls_open", "calls", ["opened_at"], sqlite_where=still_open, postgresql_where=still_open
    )
    op.create_table(
        "call_legs",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id"), primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("participant_id", sa.Text, nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("joined_at", sa.BigInteger, nullable=False),
        sa.Column("tracks", sa.Text, nullable=False),
        sa.Column("published_at", sa.BigInteger),
        sa.Column("lost_at", sa.BigInteger),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("left_at", sa.BigInteger),
    )
    op.create_table(
        "call_rings",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("distance_m", sa.Float),
        sa.Column("eta_s", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rung_at", sa.BigInteger, nullable=False),
        sa.Column("cycle", sa.Integer, nullable=False),
        sa.Column("own_grid", sa.Boolean, nullable=False),
        sa.Column("waiting", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("outcome_at", sa.BigInteger),
    )
    op.create_index("ix_call_rings_worker", "call_rings", ["worker_id", "rung_at"])


def downgrade() -> None:
    for table in ("call_rings", "call_legs", "calls"):
        op.drop_table(table)
