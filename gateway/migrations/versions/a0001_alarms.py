"""Alarms, presses, deadlines, timelines, incidents, gridworkers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "a0001"
down_revision = None
branch_labels = ("alarms",)
depends_on = "s0001"

# (name, type, nullable)
ALARM = [
    ("source", sa.Text, False),
    ("press_id", sa.Text, False),
    ("kind", sa.Text, False),
    ("silent", sa.Boolean, False),
    ("handling", sa.Text, False),
    ("condition", sa.Text, False),
    ("verified", sa.Boolean, False),
    ("place_kind", sa.Text, False),
    ("place_ref", sa.Text, True),
    ("place_label", sa.Text, False),
    ("camera", sa.Text, True),
    ("household", sa.Text, True),
    ("lat", sa.Float, True),
    ("lon", sa.Float, True),
    ("cell", sa.BigInteger, True),
    ("district", sa.Text, True),
    ("street", sa.Text, True),
    ("community", sa.Text, True),
    ("grid", sa.Text, True),
    ("received_at", sa.BigInteger, False),
    ("device_time", sa.BigInteger, False),
    ("repeats", sa.Integer, False),
    ("alerted_at", sa.BigInteger, False),
    ("shown_at", sa.BigInteger, True),
    ("acknowledged_at", sa.BigInteger, True),
    ("acknowledged_sub", sa.Text, True),
    ("acknowledged_name", sa.Text, True),
    ("outcome", sa.Text, True),
    ("type", sa.Text, True),
    ("severity", sa.Integer, True),
    ("police", sa.Text, True),
    ("merged_into", sa.Text, True),
    ("incident_id", sa.Text, True),
    ("call_id", sa.Text, True),
    ("worker_id", sa.Text, True),
    ("worker_name", sa.Text, True),
    ("eta_s", sa.Integer, True),
    ("level", sa.Text, False),
    ("base_ms", sa.BigInteger, False),
    ("group_id", sa.Text, True),
    ("cleared_at", sa.BigInteger, True),
    ("closed_at", sa.BigInteger, True),
]


def upgrade() -> None:
    op.create_table(
        "alarm",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, kind, nullable=nullable) for name, kind, nullable in ALARM),
    )
    verified, still_open = sa.text("verified"), sa.text("closed_at IS NULL")
    op.create_index(
        "uq_alarm_press",
        "alarm",
        ["source", "press_id"],
        unique=True,
        sqlite_where=verified,
        postgresql_where=verified,
    )
    op.create_index(
        "ix_alarm_open", "alarm", ["source"], sqlite_where=still_open, postgresql_where=still_open
    )
    op.create_index("ix_alarm_cell", "alarm", ["cell", "received_at"])
    op.create_index("ix_alarm_received_at", "alarm", ["received_at"])
    op.create_table(
        "press",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("press_id", sa.Text, primary_key=True),
        sa.Column("alarm_id", sa.Text, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("via", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "alarm_deadline",
        sa.Column("alarm_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_alarm_deadline_at", "alarm_deadline", ["at"])
    op.create_table(
        "alarm_timeline",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("alarm_id", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_alarm_timeline_alarm_id", "alarm_timeline", ["alarm_id", "id"])
    op.create_table(
        "incident",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("number", sa.Text, nullable=False, unique=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("severity", sa.Integer, nullable=False),
        sa.Column("police", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("came_from", sa.Text),
        sa.Column("alarm_id", sa.Text),
        sa.Column("place_label", sa.Text, nullable=False),
        sa.Column("lat", sa.Float),
        sa.Column("lon", sa.Float),
        sa.Column("district", sa.Text),
        sa.Column("street", sa.Text),
        sa.Column("community", sa.Text),
        sa.Column("grid", sa.Text),
        sa.Column("reported_by", sa.Text, nullable=False),
        sa.Column("reported_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.Column("reopened", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_index("ix_incident_state", "incident", ["state", "reported_at"])
    op.create_table(
        "worker",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("duty", sa.Text, nullable=False),
        sa.Column("duty_at", sa.BigInteger, nullable=False),
        sa.Column("lat", sa.Float),
        sa.Column("lon", sa.Float),
        sa.Column("fix_at", sa.BigInteger),
        sa.Column("accuracy_m", sa.Float),
        sa.Column("speed_mps", sa.Float),
        sa.Column("seq", sa.BigInteger),
    )
    op.create_table(
        "worker_track",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("lat", sa.Float, nullable=False),
        sa.Column("lon", sa.Float, nullable=False),
        sa.Column("accuracy_m", sa.Float, nullable=False),
    )
    op.create_index("ix_worker_track_worker_at", "worker_track", ["worker", "at"])
    op.create_index("ix_worker_track_at", "worker_track", ["at"])


def downgrade() -> None:
    raise NotImplementedError("alarms are never pruned")
