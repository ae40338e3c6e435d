//! Services that survive a restore.
