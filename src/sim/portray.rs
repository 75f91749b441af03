//! A disk in words: every frame on it, a line each, for the report of a state that breaks a promise.

use super::disk::SimDisk;
use crate::format::frame::{self, FoundOperation, Head, HeadRead, Operation, WholeFrame};
use crate::format::segment::SegmentHeader;

/// Every frame on a disk, a line each: what a person wants to see of a failing image.
pub(super) fn portray(image: &SimDisk) -> String {
    let mut text = String::new();
    for name in image.file_names() {
        let Ok(content) = image.contents(&name) else { continue };
        text.push_str(&format!("{name}: {} bytes\n", content.len()));
        let Ok(header) = SegmentHeader::decode(&content) else { continue };
        for offset in (0..content.len()).step_by(header.block_bytes as usize) {
            let HeadRead::Head(head) = Head::decode(&content[offset..], header.salt) else { continue };
            let frame =
                content.get(offset..offset + head.frame_bytes as usize).map(|bytes| frame::verify(&head, bytes));
            let Head { kind, number, epoch, watermark, frame_bytes, .. } = head;
            text.push_str(&format!(
                "  {offset:6} {kind:?} {number}, {frame_bytes} bytes, epoch {}, watermark {watermark}: ",
                epoch.counter
            ));
            match frame {
                Some(Ok(frame)) => text.push_str(&told_frame(&frame)),
                _ => text.push_str("not whole\n"),
            }
        }
    }
    text
}

fn told_frame(frame: &WholeFrame) -> String {
    let base = frame.base.as_ref().map(|base| format!("base {:?} {:?}", base.compacted, base.next)).unwrap_or_default();
    let one = |operation: &FoundOperation| match operation {
        FoundOperation::Entry { header, .. } => format!("{}/{}", header.index, header.term),
        FoundOperation::Other(Operation::PutMeta { .. }) => "put".into(),
        FoundOperation::Other(other) => format!("{other:?}"),
    };
    format!("{base} {}\n", frame.operations.iter().map(one).collect::<Vec<_>>().join(" "))
}
