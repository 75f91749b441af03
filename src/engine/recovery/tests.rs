//! Every combination of facts meets exactly one row of its table.
//!
//! The predicates here say of each row, in their own words, when it applies. They know nothing of the functions: each
//! combination must satisfy the predicate of exactly one row, and that row must be the function's. Facts that never
//! come together are tried as well; which ones those are is said where they are tried.

use std::fmt::Debug;

use super::*;

/// Checks one combination of facts: `chosen` is the function's row, `applies` each row's own predicate.
fn meets_one_row<R: Copy + PartialEq + Debug>(rows: &[R], chosen: R, facts: &dyn Debug, applies: impl Fn(R) -> bool) {
    let meant: Vec<R> = rows.iter().copied().filter(|&row| applies(row)).collect();
    assert_eq!(meant, [chosen], "{facts:?}");
}

const BOOLS: [bool; 2] = [false, true];

fn head(kind: FrameKind, number: u64, chain: u32, epoch: Epoch, watermark: u64) -> Head {
    Head {
        kind,
        has_base: false,
        frame_bytes: 512,
        operation_count: 0,
        entry_count: 0,
        base_bytes: 0,
        operations_bytes: 0,
        chain,
        first_index: None,
        number,
        epoch,
        offset: 512,
        salt: 1,
        watermark,
        headers_checksum: 0,
        checksum: 77,
    }
}

const EPOCH: Epoch = Epoch { counter: 2, random: 9 };

#[test]
fn files() {
    let marks = [None, Some((false, false)), Some((false, true)), Some((true, false)), Some((true, true))];
    for (has_segments, sizes_agree) in BOOLS.into_iter().flat_map(|one| BOOLS.map(|other| (one, other))) {
        for (logs_agree, read_only) in BOOLS.into_iter().flat_map(|one| BOOLS.map(|other| (one, other))) {
            for mark in marks {
                // Without segments nothing disagrees, and the mark is of no log: such facts say nothing then.
                let facts = FilesFacts { has_segments, sizes_agree, logs_agree, mark, read_only };
                let (proves, is_own) = (mark.is_some_and(|mark| mark.0), mark.is_none_or(|mark| mark.1));
                meets_one_row(Files::ALL, super::files(facts), &facts, |row| match row {
                    Files::Empty => !has_segments && !proves && !read_only,
                    Files::NothingToRead => !has_segments && !proves && read_only,
                    Files::AllGone => !has_segments && proves,
                    Files::OneLog => has_segments && sizes_agree && logs_agree && (is_own || !proves),
                    Files::SizesDiffer => has_segments && !sizes_agree,
                    Files::LogsDiffer => has_segments && sizes_agree && !logs_agree,
                    Files::OtherMark => has_segments && sizes_agree && logs_agree && !is_own && proves,
                });
            }
        }
    }
}

#[test]
fn header() {
    let verifies = BOOLS
        .into_iter()
        .flat_map(|is_own_name| BOOLS.map(|is_long_enough| HeaderFacts::Verifies { is_own_name, is_long_enough }));
    let damaged = BOOLS.map(|frames_tell_salt| HeaderFacts::Damaged { frames_tell_salt });
    for facts in verifies.chain(damaged).chain([HeaderFacts::Newer]) {
        for read_only in BOOLS {
            let whole =
                |name: bool, size: bool| facts == HeaderFacts::Verifies { is_own_name: name, is_long_enough: size };
            let broken = |salt: bool| facts == HeaderFacts::Damaged { frames_tell_salt: salt };
            meets_one_row(Header::ALL, super::header(facts, read_only), &(facts, read_only), |row| match row {
                Header::Belongs => whole(true, true),
                Header::OtherName => whole(false, true) || whole(false, false),
                Header::CutShort => whole(true, false),
                Header::Newer => facts == HeaderFacts::Newer,
                // Nobody looks for a salt on a writer's behalf; if it were found, it would not help.
                Header::Damaged => (broken(true) || broken(false)) && !read_only,
                Header::BySalt => broken(true) && read_only,
                Header::Mute => broken(false) && read_only,
            });
        }
    }
}

#[test]
fn start() {
    // Each first frame missing, or of this number with this watermark: three segments.
    let choices: Vec<Option<(u64, u64)>> =
        std::iter::once(None).chain((1..4).flat_map(|number| (0..4).map(move |mark| Some((number, mark))))).collect();
    for &first in &choices {
        for &second in &choices {
            for &third in &choices {
                for full in BOOLS {
                    let heads = [first, second, third];
                    let proves = |at: usize| match (heads[at], heads[at + 1]) {
                        (Some((number, _)), Some((_, mark))) => number <= mark,
                        _ => false,
                    };
                    let of = |(number, mark)| head(FrameKind::Data, number, 0, EPOCH, mark);
                    let (row, at) = super::start(&heads.map(|found| found.map(of)), full);
                    meets_one_row(Start::ALL, row, &(heads, full), |row| match row {
                        Start::Full => full,
                        Start::NewestProved => !full && (proves(0) || proves(1)),
                        Start::NothingProved => !full && !proves(0) && !proves(1),
                    });
                    assert_eq!(at, usize::from(!full && proves(1)), "{heads:?}: the newest that is proved");
                }
            }
        }
    }
    assert_eq!(super::start(&[None], false), (Start::NothingProved, 0), "a single segment proves nothing");
}

#[test]
fn older() {
    for (has_first, has_next) in BOOLS.into_iter().flat_map(|one| BOOLS.map(|other| (one, other))) {
        for fits in BOOLS {
            let mut asked = false;
            let row = super::older(has_first, has_next, || {
                asked = true;
                fits
            });
            meets_one_row(Older::ALL, row, &(has_first, has_next, fits), |row| match row {
                Older::ByIndex => has_first && has_next && fits,
                Older::ByFrames => has_first && has_next && !fits,
                Older::FirstLost => !has_first,
                Older::NextLost => has_first && !has_next,
            });
            assert_eq!(asked, has_first && has_next, "an index is nothing without the frames that it belongs to");
        }
    }
}

#[test]
fn next_with_every_combination_of_number_chain_epoch_place_and_kind() {
    let before = head(FrameKind::Data, 5, 1, EPOCH, 0);
    let lives = [(1, 9), (2, 9), (2, 8), (3, 9), (4, 1)].map(|(counter, random)| Epoch { counter, random });
    for number in [0, 4, 5, 6, 7, u64::MAX] {
        for (chain, offset) in [(77, 512), (77, 1024), (78, 512), (78, 1024)] {
            for epoch in lives {
                for kind in [FrameKind::Data, FrameKind::Mark, FrameKind::Open] {
                    let link = Link::of(Some(&before), &head(kind, number, chain, epoch, 0), offset);
                    let epoch_fits = match kind {
                        FrameKind::Open => epoch.counter > 2,
                        _ => epoch == EPOCH,
                    };
                    let facts = (number, chain, offset, epoch, kind);
                    let is_next = number == 6 && chain == 77 && offset == 512 && epoch_fits;
                    meets_one_row(Next::ALL, super::next(Standing::Whole(link)), &facts, |row| match row {
                        Next::Follows => is_next,
                        Next::Stale => !is_next,
                        Next::NotWhole | Next::Nothing | Next::SegmentEnds | Next::Newer => false,
                    });
                }
            }
        }
    }
    // The last number there is has none after it.
    let last = head(FrameKind::Data, u64::MAX, 1, EPOCH, 0);
    assert_eq!(
        super::next(Standing::Whole(Link::of(Some(&last), &head(FrameKind::Data, 0, 77, EPOCH, 0), 512))),
        Next::Stale
    );
}

#[test]
fn next_where_the_walk_starts_takes_any_whole_frame_in_its_place() {
    for number in [1, 7, u64::MAX] {
        for kind in [FrameKind::Data, FrameKind::Mark, FrameKind::Open] {
            let next = |offset| super::next(Standing::Whole(Link::of(None, &head(kind, number, 3, EPOCH, 0), offset)));
            assert_eq!((next(512), next(1024)), (Next::Follows, Next::Stale));
        }
    }
}

#[test]
fn next_where_no_whole_frame_stands() {
    for standing in [Standing::PastEnd, Standing::Nothing, Standing::NotWhole, Standing::Newer] {
        meets_one_row(Next::ALL, super::next(standing), &standing, |row| match row {
            Next::SegmentEnds => standing == Standing::PastEnd,
            Next::Nothing => standing == Standing::Nothing,
            Next::NotWhole => standing == Standing::NotWhole,
            Next::Newer => standing == Standing::Newer,
            Next::Follows | Next::Stale => false,
        });
    }
}

#[test]
fn base() {
    let states = [State::default(), State { last_term: 3, ..State::default() }];
    let choices = || [None, Some(&states[0]), Some(&states[1])];
    for found in choices() {
        for before in choices() {
            for begins_segment in BOOLS {
                // Where the walk starts a segment begins: without a state before it, the other case never comes.
                let facts = (found, before, begins_segment);
                meets_one_row(Base::ALL, super::base(found, begins_segment, before), &facts, |row| match row {
                    Base::Taken => begins_segment && found.is_some() && before.is_none(),
                    Base::Agrees => begins_segment && found.is_some() && found == before,
                    Base::Contradicts => begins_segment && found.is_some() && before.is_some() && found != before,
                    Base::Missing => begins_segment && found.is_none(),
                    Base::Misplaced => !begins_segment && found.is_some(),
                    Base::NotDue => !begins_segment && found.is_none(),
                });
            }
        }
    }
}

#[test]
fn stop() {
    for (has_followed, is_very_first) in BOOLS.into_iter().flat_map(|one| BOOLS.map(|other| (one, other))) {
        for next_follows in BOOLS {
            // Nothing is looked for in the next segment before something was followed: then `next_follows` never holds.
            let facts = (has_followed, is_very_first, next_follows);
            let row = super::stop(has_followed, is_very_first, next_follows);
            meets_one_row(Stop::ALL, row, &facts, |row| match row {
                Stop::Rolls => has_followed && next_follows,
                Stop::Ends => has_followed && !next_follows,
                Stop::Unborn => !has_followed && is_very_first,
                Stop::Lost => !has_followed && !is_very_first,
            });
        }
    }
}

#[test]
fn behind() {
    let other_life = [(1, 9), (2, 8), (3, 9)].map(|(counter, random)| Epoch { counter, random });
    for missing in [1, 5, u64::MAX] {
        for watermark in [0, 1, missing - 1, missing, missing.saturating_add(1)] {
            for last_epoch in [None, Some(EPOCH)] {
                let heads = other_life.into_iter().chain([EPOCH]).map(|epoch| Evidence::Head { watermark, epoch });
                for evidence in heads.chain([Evidence::NewerHead, Evidence::Mark { watermark }]) {
                    let (is_head, is_mark) =
                        (matches!(evidence, Evidence::Head { .. }), matches!(evidence, Evidence::Mark { .. }));
                    let is_own = last_epoch.is_some() && evidence == Evidence::Head { watermark, epoch: EPOCH };
                    let covers = missing <= watermark;
                    let row = super::behind(evidence, missing, last_epoch);
                    meets_one_row(Behind::ALL, row, &(evidence, missing, last_epoch), |row| match row {
                        Behind::Witness => is_head && covers,
                        Behind::MarkWitness => is_mark && covers,
                        Behind::Newer => evidence == Evidence::NewerHead,
                        Behind::InFlight => is_own && !covers,
                        Behind::OtherLife => is_head && !is_own && !covers,
                        Behind::MarkBefore => is_mark && !covers,
                    });
                }
            }
        }
    }
}

#[test]
fn beginning() {
    let state = |next: Option<u64>| State { next, ..State::default() };
    let bases = [None, Some(state(None)), Some(state(Some(0))), Some(state(Some(5)))];
    for base in &bases {
        for compacted in [None, Some(0), Some(3), Some(4), Some(5), Some(crate::format::INDEX_MAX)] {
            for is_very_first in BOOLS {
                let next = base.as_ref().and_then(|base| base.next);
                // Whether each index below `next` is covered: counted rather than compared.
                let uncovered = (0..next.unwrap_or(0)).any(|index| compacted.is_none_or(|last| index > last));
                let facts = (base, compacted, is_very_first);
                let row = super::beginning(is_very_first, base.as_ref(), compacted);
                meets_one_row(Beginning::ALL, row, &facts, |row| match row {
                    Beginning::VeryFirst => is_very_first,
                    Beginning::BaseLost => !is_very_first && base.is_none(),
                    Beginning::Covered => !is_very_first && base.is_some() && !uncovered,
                    Beginning::SegmentMissing => !is_very_first && base.is_some() && uncovered,
                });
            }
        }
    }
}

#[test]
fn kept() {
    for number in [1, 2, 3, u64::MAX - 1] {
        for witnessed in [0, 1, 2, 3, 4, u64::MAX] {
            meets_one_row(Kept::ALL, super::kept(number, witnessed), &(number, witnessed), |row| match row {
                Kept::Proved => number <= witnessed,
                Kept::Rewritten => number > witnessed,
            });
        }
    }
}

#[test]
fn ending() {
    for last in [None, Some(FrameKind::Data), Some(FrameKind::Open), Some(FrameKind::Mark)] {
        for (in_flight, created) in BOOLS.into_iter().flat_map(|one| BOOLS.map(|other| (one, other))) {
            // A log that was made just now has no last frame, and nothing in flight.
            let is_ended = last == Some(FrameKind::Open) || last == Some(FrameKind::Mark);
            let needs_nothing = is_ended && !in_flight;
            let row = super::ending(last, in_flight, created);
            meets_one_row(Ending::ALL, row, &(last, in_flight, created), |row| match row {
                Ending::Clean => needs_nothing,
                Ending::Created => created && !needs_nothing,
                Ending::Cut => !created && !needs_nothing,
            });
        }
    }
}

#[test]
fn open_frame() {
    for block in [512, 4096] {
        for blocks_left in 0..30 {
            for has_spare in BOOLS {
                let row = super::open_frame(blocks_left * block, block, has_spare);
                meets_one_row(OpenFrame::ALL, row, &(blocks_left, has_spare), |row| match row {
                    OpenFrame::Here => blocks_left >= if has_spare { 1 } else { 3 },
                    OpenFrame::NextSegment => has_spare && blocks_left == 0,
                    OpenFrame::Deferred => !has_spare && blocks_left < 3,
                });
            }
        }
    }
}

#[test]
fn blocks() {
    for (end, spare) in BOOLS.into_iter().flat_map(|one| BOOLS.map(|other| (one, other))) {
        for has_frames in BOOLS {
            let row = super::blocks(end, spare, has_frames);
            meets_one_row(Blocks::ALL, row, &(end, spare, has_frames), |row| match row {
                Blocks::Fit => !end && !spare,
                Blocks::EndTooSmall => end && has_frames,
                Blocks::UnbornTooSmall => end && !has_frames,
                Blocks::SpareTooSmall => !end && spare,
            });
        }
    }
}

#[test]
fn spare() {
    for begins_with_frame in BOOLS {
        meets_one_row(Spare::ALL, super::spare(begins_with_frame), &begins_with_frame, |row| match row {
            Spare::Blank => !begins_with_frame,
            Spare::DeadFrame => begins_with_frame,
        });
    }
}

#[test]
fn only_a_watermark_at_or_past_the_missing_frame_witnesses() {
    assert!(!witnesses(4, 5) && witnesses(5, 5) && witnesses(6, 5));
}

#[test]
fn the_epoch_counter_has_an_end() {
    assert_eq!(next_epoch(u64::MAX - 1, 0), None);
    assert_eq!(next_epoch(0, 7), Some(Epoch { counter: 1, random: 7 }));
}
