//! The run's result: as JSON for programs, as a table for people.

use std::fmt::Write as _;

use serde::Serialize;

use crate::args::BenchArgs;
use crate::bench::figures::{BusyThread, Figures};
use crate::engine::{Durability, Wait};
use crate::text::{bytes, count, value};

/// Others using more of the CPUs than this is worth a remark.
const DISTURBED_PERCENT: f64 = 20.0;

/// Everything that is told about a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) figures: Figures,
    pub(crate) stages_us: Stages,
    /// CPU time that other programs (and the kernel) took meanwhile: a disturbed run shows here.
    pub(crate) cpu_share_of_others: Option<f64>,
    pub(crate) peak_rss_mb: Option<f64>,
    pub(crate) durability: String,
    pub(crate) io_mode: String,
    pub(crate) acknowledged_entries: u64,
    pub(crate) verified_entries: u64,
    pub(crate) compacted_entries: u64,
    pub(crate) settings: Settings,
}

/// Where the time of a frame goes in the log, medians and 99th percentiles in microseconds, over all of the run.
#[derive(Debug, Serialize)]
pub(crate) struct Stages {
    pub(crate) queue_wait: [f64; 2],
    pub(crate) encode: [f64; 2],
    pub(crate) write: [f64; 2],
    pub(crate) wake: [f64; 2],
}

/// What was asked for, and where it ran.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) version: &'static str,
    pub(crate) producers: u32,
    pub(crate) window: u32,
    pub(crate) payload: usize,
    pub(crate) batch: u32,
    pub(crate) seconds: u32,
    pub(crate) segment_size: u64,
    pub(crate) retain: Option<u64>,
    pub(crate) wait: String,
    pub(crate) frames_in_flight: u32,
    pub(crate) file_system: String,
    pub(crate) floor_direct: bool,
    pub(crate) cpus: usize,
}

impl Settings {
    pub(crate) fn of(args: &BenchArgs, file_system: String, floor_direct: bool) -> Settings {
        Settings {
            version: env!("CARGO_PKG_VERSION"),
            producers: args.producers,
            window: args.window,
            payload: args.payload,
            batch: args.batch,
            seconds: args.seconds,
            segment_size: args.segment_size,
            retain: args.retain,
            wait: wait_name(args.wait),
            frames_in_flight: args.frames_in_flight,
            file_system,
            floor_direct,
            cpus: cpus(),
        }
    }
}

/// CPUs that this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A durability as it is given on the command line.
pub(crate) fn durability_name(durability: Durability) -> String {
    match durability {
        Durability::Sync => "sync".into(),
        Durability::Interval(every) => format!("interval:{}", every.as_millis()),
        Durability::None => "none".into(),
    }
}

/// What an ack is worth under a durability.
pub(crate) fn durability_promise(durability: Durability) -> String {
    match durability {
        Durability::Sync => "an acknowledged entry survives power loss".into(),
        Durability::Interval(every) => {
            format!("POWER LOSS MAY TAKE the entries acknowledged in the last {every:?}; a killed process loses none")
        }
        Durability::None => {
            "POWER LOSS MAY TAKE every entry acknowledged since the last full segment; a killed process loses none"
                .into()
        }
    }
}

fn wait_name(wait: Wait) -> String {
    match wait {
        Wait::Park => "park".into(),
        Wait::Spin(time) => format!("spin:{}", time.as_micros()),
    }
}

/// The report as a table; units are in the first column.
pub(crate) fn table(report: &Report, durability: Durability) -> String {
    let (figures, floor, ratio) = (&report.figures, &report.figures.floor, &report.figures.ratio);
    let mut table = format!("\ndurability {}: {}\n\n", report.durability, durability_promise(durability));
    row(&mut table, "", ["log", "device's floor", "log / floor"].map(String::from), "");
    let frame = bytes(floor.frame_bytes as u64);
    let depth = report.settings.frames_in_flight;
    let mut against = |label: &str, [log, floor, ratio]: [f64; 3], what: &str| {
        row(&mut table, label, [value(log), value(floor), format!("{} x", value(ratio))], what);
    };
    against(
        "latency, median (us)",
        [figures.latency_us.p50, floor.write_p50_us, ratio.p50_to_floor],
        "one 4 KiB write at a time",
    );
    against(
        "entries acknowledged /s",
        [figures.acked_per_s, floor.writes_per_s_depth1, ratio.acked_to_depth1],
        "4 KiB writes, one at a time",
    );
    against(
        "batches acknowledged /s",
        [
            figures.acked_per_s / f64::from(report.settings.batch),
            floor.frame_writes_per_s_depth1,
            ratio.acked_batches_to_frame_depth1,
        ],
        &format!("{frame} writes, one at a time"),
    );
    against(
        "frames written /s",
        [figures.frames_per_s, floor.frame_writes_per_s_depthN, ratio.frames_to_frame_depthN],
        &format!("{frame} writes, {depth} at a time"),
    );
    against(
        "payload (MB/s)",
        [figures.mb_per_s, floor.sequential_mb_per_s, ratio.mb_to_sequential],
        &format!("1 MiB writes, {depth} at a time"),
    );
    table.push('\n');
    details(&mut table, report);
    table
}

fn details(table: &mut String, report: &Report) {
    let (figures, floor) = (&report.figures, &report.figures.floor);
    let latency = &figures.latency_us;
    let tail = [latency.p90, latency.p99, latency.p999, latency.max].map(value).join(" / ");
    let or_unknown = |known: Option<f64>| known.map_or("not counted here".into(), value);
    let mut line = |label: &str, text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{label:<46}{text}");
    };
    line("latency p90 / p99 / p99.9 / max (us)", tail);
    line("entries per frame", value(figures.entries_per_frame));
    line("bytes written per payload byte", value(figures.bytes_written_per_payload_byte));
    line("device flushes per acknowledged entry", or_unknown(figures.device_flushes_per_ack));
    line("CPU seconds per million acknowledged entries", value(figures.cpu_seconds_per_million_acks));
    line("share of all CPUs this process used", format!("{} %", value(100.0 * figures.cpu_share)));
    if let Some(busy) = figures.cpus_busy {
        line("share of all CPUs not idle meanwhile", format!("{} %", value(100.0 * busy)));
    }
    if let Some(BusyThread { name, cpu_share }) = &figures.busiest_thread {
        line("busiest thread", format!("{name}, {} % of a CPU", value(100.0 * cpu_share)));
    }
    line("hand-over, two parked threads there and back", format!("{} us", value(floor.handover_us)));
    line("4 KiB writes, several at a time", format!("{} /s", value(floor.writes_per_s_depthN)));
    line("peak memory", format!("{} MB", or_unknown(report.peak_rss_mb)));
    let others = report.cpu_share_of_others.map(|share| 100.0 * share);
    let disturbed = if others > Some(DISTURBED_PERCENT) { ": the figures may be disturbed" } else { "" };
    line("CPU time used by others and the kernel", format!("{} %{disturbed}", or_unknown(others)));
    line("pairs of 200 ms slices", count(figures.pairs as u64));
    let compacted = match report.compacted_entries {
        0 => String::new(),
        entries => format!(" ({} more were compacted away)", count(entries)),
    };
    line("verified after reopening", format!("all {} entries{compacted}", count(report.verified_entries)));
}

fn row(table: &mut String, label: &str, [log, floor, ratio]: [String; 3], what: &str) {
    let line = format!("{label:<26}{log:>14}{floor:>16}{ratio:>14}   {what}");
    let _ = writeln!(table, "{}", line.trim_end());
}
