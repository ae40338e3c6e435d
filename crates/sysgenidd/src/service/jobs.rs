// SPDX-License-Identifier: MIT OR Apache-2.0

//! What systemd is about to do with a unit.

use std::process::Command;

/// Why systemd has not answered: `systemctl` did not run or did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask systemd for its jobs: {0}; is systemctl installed?")]
pub struct Error(String);

/// Whether systemd stops `unit` only to start it again.
///
/// For `ExecStop=`, which runs in both cases and is not told which one it is.
///
/// # Errors
///
/// [`Error`].
pub fn restart_is_queued(unit: &str) -> Result<bool, Error> {
    let output = Command::new("systemctl")
        .args([
            "list-jobs",
            "--plain",
            "--no-legend",
            "--full",
            "--no-pager",
        ])
        .output()
        .map_err(|error| Error(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error(said.trim().to_owned()));
    }
    Ok(has_restart_job(
        &String::from_utf8_lossy(&output.stdout),
        unit,
    ))
}

/// Each line is the number of a job, its unit, what it does and how far it is.
fn has_restart_job(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(unit) && matches!(fields.next(), Some("restart" | "try-restart"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_told_from_a_stop_by_the_job_of_the_unit() {
        let jobs = " 97 sysgenidd.service restart running\n 98 other.service stop waiting\n";
        assert!(has_restart_job(jobs, "sysgenidd.service"));
        assert!(!has_restart_job(jobs, "other.service"));
        assert!(!has_restart_job(jobs, "genidd.service"));
        assert!(has_restart_job(
            "1 a.service try-restart waiting",
            "a.service"
        ));
        assert!(!has_restart_job("1 a.service stop running", "a.service"));
        assert!(!has_restart_job("1 restart restart-me stop", "a.service"));
        assert!(!has_restart_job("", "a.service"));
        assert!(!has_restart_job("No jobs running.\n", "a.service"));
    }
}
