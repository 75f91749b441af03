//! Tests of sequencer and pipeline together: laws that hold for any batches, any segment ends, any completion order.

use bytes::Bytes;
use proptest::prelude::*;

use super::ledger::Ledger;
use super::pipeline::{Bounds, GATHER_BYTES, Offer, Pipeline, Step as PipelineStep};
use super::sequencer::{Accepted, Frame, Limits, Plot, Refusal, Request, Sequencer, Start};
use super::space::{self, Class};
use crate::error::Error;
use crate::format::frame::{Epoch, FrameKind, HEAD_BYTES, Head, HeadRead, Operation, verify};

const BLOCK: u32 = 512;
const SEGMENT: u64 = 40 * 512;
const EPOCH: Epoch = Epoch { counter: 1, random: 7 };

fn plot(sequence: u64) -> Plot {
    Plot { sequence, salt: sequence * 31, block_bytes: BLOCK, segment_bytes: SEGMENT }
}

fn sequencer(open_due: bool) -> Sequencer {
    let start = Start {
        ledger: Ledger::default(),
        active: plot(1),
        tail: BLOCK.into(),
        spares: Vec::new(),
        next_number: 1,
        durable: (0, None),
        open_due,
        last_kind: FrameKind::Open,
    };
    Sequencer::new(start, Limits { frame_bytes_max: 4096, block_bytes: BLOCK, first_index: 1 })
}

fn accept(sequencer: &mut Sequencer, batch: &[Request]) -> Result<Accepted, Refusal> {
    sequencer.accept(&mut batch.to_vec(), 5, &[])
}

fn push(bytes: usize) -> Request {
    Request::Push(Bytes::from(vec![1; bytes]))
}

fn pipeline(durable_writes: bool) -> Pipeline {
    Pipeline::new(Bounds { frames: 4, bytes: 1 << 20, durable_writes }, EPOCH, 0, 0)
}

fn offer(bytes: u64) -> Offer {
    Offer { bytes, calls: 1, goes_alone: false, is_closed: false }
}

fn drain(sequencer: &mut Sequencer) -> Vec<Frame> {
    std::iter::from_fn(|| sequencer.take_frame()).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<usize>),
    Meta(usize),
    Mark,
    Spare,
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec(0..900usize, 1..5).prop_map(Step::Batch),
        1 => (0..300usize).prop_map(Step::Meta),
        1 => Just(Step::Mark),
        2 => Just(Step::Spare),
        3 => Just(Step::Take),
    ]
}

/// Carries out a step; what it hands over is collected.
fn carry_out(sequencer: &mut Sequencer, step: &Step, frames: &mut Vec<Frame>) {
    match step {
        Step::Batch(sizes) => {
            let before = sequencer.ledger.outline.clone();
            let batch: Vec<Request> = sizes.iter().map(|&bytes| push(bytes)).collect();
            match accept(sequencer, &batch) {
                Ok(accepted) => assert_eq!(accepted.indexes.end - accepted.indexes.start, sizes.len() as u64),
                Err(Refusal::NoRoom) => {
                    assert_eq!(sequencer.ledger.outline, before, "a refusal leaves nothing behind");
                    assert_eq!(sequencer.spare_count(), 0, "with a spare there is always room");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        Step::Meta(bytes) => {
            let put = Request::PutMeta(Bytes::from_static(b"k"), Bytes::from(vec![2; *bytes]));
            assert!(matches!(accept(sequencer, &[put]), Ok(_) | Err(Refusal::NoRoom)));
        }
        Step::Mark => drop(sequencer.add_mark()),
        Step::Spare if sequencer.spare_count() < 2 => {
            let sequence = sequencer.next_spare().unwrap();
            sequencer.add_spare(plot(sequence));
        }
        Step::Spare => {}
        Step::Take => frames.extend(sequencer.take_frame()),
    }
}

/// Frames lie end to end, numbers without gaps, and each segment begins with a base.
fn check_frames(frames: &[Frame]) {
    for pair in frames.windows(2) {
        let (before, frame) = (&pair[0], &pair[1]);
        assert_eq!(frame.number, before.number + 1);
        let rolled = frame.plot.sequence != before.plot.sequence;
        let place = if rolled { u64::from(BLOCK) } else { before.end() };
        assert_eq!((frame.offset, frame.base.is_some()), (place, rolled));
        assert!(!rolled || frame.plot.sequence == before.plot.sequence + 1);
    }
    assert!(frames.iter().all(|frame| frame.end() <= SEGMENT && (frame.offset + HEAD_BYTES as u64) < SEGMENT));
}

proptest! {
    #[test]
    fn frames_lie_end_to_end_and_never_pass_what_was_promised(
        steps in proptest::collection::vec(step(), 1..80),
        open_due: bool,
    ) {
        let mut sequencer = sequencer(open_due);
        let mut frames = Vec::new();
        for step in &steps {
            let (spares, next) = (sequencer.spare_count(), sequencer.next_index());
            carry_out(&mut sequencer, step, &mut frames);
            if spares == 0 && sequencer.next_index() > next {
                prop_assert!(sequencer.tail() <= space::limit(Class::Data, SEGMENT, BLOCK, false));
            }
        }
        frames.extend(drain(&mut sequencer));
        check_frames(&frames);
        if open_due && let Some(first) = frames.first() {
            prop_assert!(first.goes_alone(), "the open frame goes before anything else");
        }
        let entries: u64 = frames.iter().map(|frame| u64::from(frame.entry_count)).sum();
        prop_assert_eq!(sequencer.next_index(), 1 + entries);
    }

    #[test]
    fn acks_leave_in_log_order_whatever_completes_first(order in Just((0..4usize).collect::<Vec<_>>()).prop_shuffle()) {
        let mut sequencer = sequencer(false);
        let mut pipeline = pipeline(true);
        let mut frames = Vec::new();
        for _ in 0..4 {
            accept(&mut sequencer, &[push(600)]).unwrap();
            let frame = sequencer.take_frame().unwrap();
            pipeline.encode(&frame, &mut vec![0; frame.padded_bytes() as usize], 0);
            frames.push(frame.number);
        }
        prop_assert!(!pipeline.admits(512, false), "four are in flight");
        let mut done = std::collections::BTreeSet::new();
        for at in order {
            done.insert(frames[at]);
            let contiguous = (1..=4).take_while(|number| done.contains(number)).count() as u64;
            let progress = pipeline.on_written(frames[at], 0);
            prop_assert_eq!((progress.written, progress.durable), (contiguous, contiguous));
        }
        prop_assert!(pipeline.is_idle());
    }
}

#[test]
fn arrivals_gather_while_something_is_in_flight_and_go_at_once_when_nothing_is() {
    let (mut sequencer, mut pipeline) = (sequencer(false), pipeline(true));
    assert_eq!(pipeline.next_step(0, offer(512)), PipelineStep::Go);
    accept(&mut sequencer, &[push(1)]).unwrap();
    let first = sequencer.take_frame().unwrap();
    pipeline.encode(&first, &mut [0; 512], 0);
    assert_eq!(pipeline.next_step(0, offer(512)), PipelineStep::Wait { worth_bytes: GATHER_BYTES });
    assert_eq!(pipeline.next_step(0, offer(GATHER_BYTES)), PipelineStep::Go);
    let closed = Offer { is_closed: true, ..offer(512) };
    assert_eq!(pipeline.next_step(0, closed), PipelineStep::Go, "it gains nothing by waiting");
    let joined: Vec<u64> = (0..3).map(|_| accept(&mut sequencer, &[push(1)]).unwrap().number).collect();
    assert_eq!(joined, [2, 2, 2], "all three join one frame");
}

#[test]
fn an_open_frame_is_durable_before_anything_follows_it() {
    let (mut sequencer, mut pipeline) = (sequencer(true), pipeline(true));
    accept(&mut sequencer, &[push(1)]).unwrap();
    let open = sequencer.take_frame().unwrap();
    assert!(open.goes_alone() && pipeline.admits(512, true));
    pipeline.encode(&open, &mut [0; 512], 0);
    assert!(!pipeline.admits(512, false));
    pipeline.on_written(open.number, 0);
    assert!(pipeline.admits(512, false));
}

#[test]
fn without_durable_writes_only_a_completed_sync_makes_durable_and_only_what_was_written_before_it() {
    let (mut sequencer, mut pipeline) = (sequencer(false), pipeline(false));
    for _ in 0..2 {
        accept(&mut sequencer, &[push(1)]).unwrap();
        let frame = sequencer.take_frame().unwrap();
        pipeline.encode(&frame, &mut [0; 512], 0);
    }
    assert_eq!(pipeline.on_written(1, 0).durable, 0);
    assert_eq!(pipeline.begin_sync(), Some(vec![1]));
    assert_eq!(pipeline.on_written(2, 0).written, 2);
    assert_eq!(pipeline.begin_sync(), None, "one at a time");
    assert_eq!(pipeline.on_synced().durable, 1);
    assert!(pipeline.wants_sync());
    pipeline.begin_sync().unwrap();
    assert_eq!(pipeline.on_synced().durable, 2);
}

#[test]
fn after_a_failure_nothing_is_admitted_and_nothing_moves() {
    let (mut sequencer, mut pipeline) = (sequencer(false), pipeline(true));
    for _ in 0..3 {
        accept(&mut sequencer, &[push(1)]).unwrap();
        let frame = sequencer.take_frame().unwrap();
        pipeline.encode(&frame, &mut [0; 512], 0);
    }
    pipeline.on_written(1, 0);
    pipeline.on_failed(2);
    assert_eq!(pipeline.on_written(3, 0).durable, 1);
    assert!(pipeline.is_idle() && !pipeline.admits(512, false));
}

#[test]
fn encoded_frames_are_whole_chained_and_carry_the_watermark() {
    let (mut sequencer, mut pipeline) = (sequencer(true), pipeline(true));
    let mut chain = 0;
    for round in 0..6 {
        accept(&mut sequencer, &[push(700), push(round)]).unwrap();
        while let Some(frame) = sequencer.take_frame() {
            let durable = pipeline.progress().durable;
            let mut bytes = vec![0xff; frame.padded_bytes() as usize];
            pipeline.encode(&frame, &mut bytes, 0);
            let HeadRead::Head(head) = Head::decode(&bytes, frame.plot.salt) else { panic!("a head") };
            assert_eq!((head.chain, head.watermark, head.epoch), (chain, durable, EPOCH));
            assert_eq!(verify(&head, &bytes).unwrap().operations.len(), frame.operations.len());
            chain = head.checksum;
            pipeline.on_written(frame.number, 0);
        }
    }
}

#[test]
fn the_largest_batch_fits_and_one_byte_more_is_refused_with_the_limit() {
    let mut sequencer = sequencer(false);
    let limit = space::batch_bytes_max(SEGMENT, BLOCK);
    let header = Operation::Compact { index: 0, term: 0 }.encoded_bytes();
    let largest = (limit / 8 * 8 - header) as usize;
    assert!(accept(&mut sequencer, &[push(largest)]).is_ok());
    match accept(&mut sequencer, &[push(largest + 8)]) {
        Err(Refusal::Error(Error::TooLarge { limit: told, .. })) => assert_eq!(told, limit),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_segment_without_a_spare_still_takes_the_compaction_that_frees_one() {
    let mut sequencer = sequencer(false);
    accept(&mut sequencer, &[push(1)]).unwrap();
    sequencer.add_spare(plot(2));
    let spare_used = |sequencer: &Sequencer| sequencer.active().sequence == 2;
    while !(spare_used(&sequencer) && matches!(accept(&mut sequencer, &[push(900)]), Err(Refusal::NoRoom))) {
        let _ = accept(&mut sequencer, &[push(900)]);
    }
    let mut small = 0;
    while accept(&mut sequencer, &[Request::PutMeta("k".into(), vec![small as u8; 400].into())]).is_ok() {
        sequencer.take_frame();
        small += 1;
    }
    assert!(small > 0, "the reserve takes hard state");
    assert!(matches!(accept(&mut sequencer, &[push(1)]), Err(Refusal::NoRoom)));
    let last_of_first = sequencer.ledger.ranges.iter().next().unwrap().live.end - 1;
    accept(&mut sequencer, &[Request::Compact(last_of_first, None)])
        .expect("the last blocks take what frees a segment");
}

#[test]
fn the_durable_index_falls_with_a_truncation_and_rises_with_durable_frames_only() {
    let mut sequencer = sequencer(false);
    accept(&mut sequencer, &[push(1), push(1), push(1)]).unwrap();
    sequencer.take_frame();
    sequencer.on_durable(1);
    assert_eq!(sequencer.durable_next(), Some(4));
    accept(&mut sequencer, &[Request::Truncate(3)]).unwrap();
    assert_eq!(sequencer.durable_next(), Some(3));
    sequencer.take_frame();
    accept(&mut sequencer, &[push(1), push(1)]).unwrap();
    sequencer.take_frame();
    sequencer.on_durable(2);
    assert_eq!(sequencer.durable_next(), Some(3));
    sequencer.on_durable(3);
    assert_eq!((sequencer.durable_next(), sequencer.queued_bytes()), (Some(5), 0));
}

#[test]
fn a_truncation_below_what_is_in_memory_asks_for_the_term_it_needs() {
    let mut sequencer = sequencer(false);
    accept(&mut sequencer, &[push(1), push(1)]).unwrap();
    sequencer.ledger.indexes.clear();
    assert!(matches!(accept(&mut sequencer, &[Request::Truncate(2)]), Err(Refusal::NeedTerm(1))));
    assert!(sequencer.accept(&mut vec![Request::Truncate(2)], 0, &[(1, 0)]).is_ok());
}

#[test]
fn a_frame_is_held_for_the_callers_that_were_acknowledged_just_now_and_then_goes() {
    let (mut sequencer, mut pipeline) = (sequencer(false), pipeline(true));
    for _ in 0..4 {
        accept(&mut sequencer, &[push(1)]).unwrap();
    }
    let frame = sequencer.take_frame().unwrap();
    assert_eq!(frame.calls, 4);
    pipeline.encode(&frame, &mut [0; 512], 1_000);
    pipeline.on_written(1, 101_000);
    let of = |calls| Offer { calls, ..offer(512) };
    assert_eq!(pipeline.next_step(101_000, of(1)), PipelineStep::Hold { until_ns: 126_000, calls: 4 });
    assert_eq!(pipeline.next_step(101_000, of(4)), PipelineStep::Go, "all are back");
    assert_eq!(pipeline.next_step(126_000, of(1)), PipelineStep::Go, "a quarter of the write is over");
    assert_eq!(pipeline.next_step(101_000, Offer { is_closed: true, ..of(1) }), PipelineStep::Go);
}

proptest! {
    #[test]
    fn plain_batches_are_accepted_as_any_other_way_would(
        batches in proptest::collection::vec(proptest::collection::vec(0..900usize, 1..6), 1..60),
        spares in 0..3usize,
    ) {
        // The same batches with a request that changes nothing, which keeps them from the short way.
        let (mut short, mut long) = (sequencer(false), sequencer(false));
        for sizes in &batches {
            let plain: Vec<Request> = sizes.iter().map(|&bytes| push(bytes)).collect();
            let mut any = plain.clone();
            any.push(Request::DeleteMeta(Bytes::from_static(b"absent")));
            for one in [&mut short, &mut long] {
                if one.spare_count() < spares {
                    let sequence = one.next_spare().unwrap();
                    one.add_spare(plot(sequence));
                }
            }
            match (accept(&mut short, &plain), accept(&mut long, &any)) {
                (Ok(short), Ok(long)) => {
                    prop_assert!(short.is_plain && !long.is_plain);
                    prop_assert_eq!((short.indexes, short.number), (long.indexes, long.number));
                }
                (Err(Refusal::NoRoom), Err(Refusal::NoRoom)) => {}
                (short, long) => prop_assert!(false, "{short:?} but {long:?}"),
            }
            prop_assert_eq!(&short.ledger.outline, &long.ledger.outline);
            prop_assert_eq!(short.queued_bytes(), long.queued_bytes());
        }
        let (short_frames, long_frames) = (drain(&mut short), drain(&mut long));
        prop_assert_eq!(short_frames.len(), long_frames.len());
        for (short, long) in short_frames.iter().zip(&long_frames) {
            prop_assert_eq!(&short.operations, &long.operations);
            let facts = |frame: &Frame| (frame.entry_count, frame.payload_bytes, frame.used_bytes, frame.first_index());
            prop_assert_eq!(facts(short), facts(long));
        }
        let ranges = |one: &Sequencer| one.ledger.ranges.iter().cloned().collect::<Vec<_>>();
        prop_assert_eq!(ranges(&short), ranges(&long));
        prop_assert_eq!(format!("{:?}", short.ledger.indexes), format!("{:?}", long.ledger.indexes));
    }
}
