"""Deliveries to audiences, tasks, photos, deadlines of incidents, and what the figures of the closed loop are made from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "a0002"
down_revision = "a0001"
branch_labels = None
depends_on = None

STEPS = ("dispatched_at", "on_scene_at", "submitted_at", "ended_at", "action_by", "follow_up_at")


def upgrade() -> None:
    op.create_table(
        "alarm_delivery",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("audience", sa.Text, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("delivered_at", sa.BigInteger),
        sa.Column("reached", sa.Integer),
    )
    op.create_index("ix_alarm_delivery_subject", "alarm_delivery", ["subject", "id"])
    op.create_table(
        "task",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("incident_id", sa.Text, nullable=False),
        sa.Column("assignee", sa.Text, nullable=False),
        sa.Column("assignee_name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("feedback", sa.Text, nullable=False),
        sa.Column("offered_by", sa.Text, nullable=False),
        sa.Column("offered_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("accepted_at", sa.BigInteger),
        sa.Column("on_scene_at", sa.BigInteger),
        sa.Column("done_at", sa.BigInteger),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_task_incident_id", "task", ["incident_id"])
    op.create_index("ix_task_assignee", "task", ["assignee", "offered_at"])
    op.create_index("ix_task_expires_at", "task", ["expires_at"])
    op.create_table(
        "task_photo",
        sa.Column("task_id", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    for name in STEPS:
        op.add_column("incident", sa.Column(name, sa.BigInteger))
    op.add_column("incident", sa.Column("satisfied", sa.Boolean))
    op.add_column("incident", sa.Column("score", sa.Integer))
    op.add_column("incident", sa.Column("transferred_to", sa.Text))
    op.create_index("ix_incident_action_by", "incident", ["action_by"])
    op.create_index("ix_incident_reported_at", "incident", ["reported_at"])


def downgrade() -> None:
    raise NotImplementedError("a closed loop is not taken back")
