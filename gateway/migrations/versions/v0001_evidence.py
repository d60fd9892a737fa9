"""Clips: what was recorded of calls and cameras."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None
branch_labels = ("evidence",)
depends_on = "s0001"


def upgrade() -> None:
    op.create_table(
        "evidence_clips",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("recording_id", sa.Text, nullable=False, index=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("source_id", sa.Text, nullable=False),
        sa.Column("alarm_id", sa.Text, index=True),
        sa.Column("incident_id", sa.Text, index=True),
        sa.Column("call_id", sa.Text, index=True),
        sa.Column("camera_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("lineage", sa.Text, nullable=False),
        sa.Column("ordered_at", sa.BigInteger, nullable=False),
        sa.Column("pressed_at", sa.BigInteger),
        sa.Column("until_at", sa.BigInteger),
        sa.Column("from_at", sa.BigInteger),
        sa.Column("to_at", sa.BigInteger),
        sa.Column("media_type", sa.Text),
        sa.Column("file", sa.Text),
        sa.Column("size", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("preroll_s", sa.Float, nullable=False),
        sa.Column("gaps", sa.Text, nullable=False),
        sa.Column("hold_by", sa.Text),
        sa.Column("hold_at", sa.BigInteger),
        sa.Column("hold_reason", sa.Text),
        sa.Column("expires_at", sa.BigInteger),
    )
    op.create_index("ix_evidence_clips_state", "evidence_clips", ["state", "expires_at"])


def downgrade() -> None:
    op.drop_table("evidence_clips")
