// SPDX-License-Identifier: GPL-2.0-only

//! A driver that serves a device, as one is written; and, line by line, what must not compile.

use kernel::{
    fs::{
        File,
        LocalFile, //
    },
    mm::virt::VmaNew,
    prelude::*,
    seq_file::SeqFile,
    sync::poll::PollTable, //
};
use miscdevice::{
    Borrowed,
    Device,
    MiscModule,
    Options,
    Serve, //
};
use uevent::{
    DeviceEvents,
    Uevents, //
};
use user_copy::{
    Destination,
    Source, //
};
use vma::Area;
use word_page::WordPage;

#[path = "../support/file/miscdevice.rs"]
mod miscdevice;
#[path = "../support/file/uevent.rs"]
mod uevent;
#[path = "../support/file/user_copy.rs"]
mod user_copy;
#[path = "../support/file/vma.rs"]
mod vma;
#[path = "../support/file/word_page.rs"]
mod word_page;
#[path = "../support/workqueue.rs"]
mod workqueue;

module! {
    type: MiscModule<Served>,
    name: "device",
    authors: ["The sysgenid developers"],
    description: "A driver of which some lines must not compile",
    license: "GPL",
}

struct Opened(WordPage);

impl Device for Opened {
    type Data = ();
    type Ptr = KBox<Self>;

    fn open(_: &File, (): &()) -> Result<KBox<Self>> {
        Ok(KBox::new(Self(WordPage::new(0)?), GFP_KERNEL)?)
    }

    fn release(_: KBox<Self>) {}

    fn read(_: Borrowed<'_, Self>, file: &LocalFile, _: &mut impl Destination) -> Result<usize> {
        let _ = file.flags();
        // A file that other threads may use, too, is not what a read has.
        let _: &File = file; // refused: E0308
        Ok(0)
    }

    fn write(_: Borrowed<'_, Self>, _: &mut impl Source) -> Result<usize> {
        Ok(0)
    }

    fn poll(_: Borrowed<'_, Self>, _: &File, _: PollTable<'_>) -> u32 {
        0
    }

    // A mapping that is not prepared for the page that a fault puts into it.
    fn mmap(_: Borrowed<'_, Self>, _: &VmaNew) -> Result { Ok(()) } // refused: E0407

    fn may_map(area: &Area) -> Result {
        let Area {
            first_page: _,
            pages: _,
            writable: _,
            executable: _,
        } = area;
        Ok(())
    }

    fn page<'a>(opened: Borrowed<'a, Self>) -> &'a WordPage {
        // A page that goes while it is mapped.
        return &WordPage::new(0).unwrap(); // refused: E0515
        &opened.0
    }

    fn ioctl(_: Borrowed<'_, Self>, _: u32, _: usize) -> Result<isize> {
        Ok(0)
    }

    fn show_fdinfo(_: Borrowed<'_, Self>, _: &SeqFile) {}
}

struct Served {
    uevents: Uevents,
    events: Option<DeviceEvents>,
}

impl Serve for Served {
    type Device = Opened;

    fn start() -> Result<Self> {
        let (uevents, events) = Uevents::new("CHANGE")?;
        // Events of a device that may be gone.
        events.start(todo!()); // refused: E0133
        // The same events of two devices.
        let _ = (events.clone(), 0); // refused: E0599
        Ok(Self {
            uevents,
            events: Some(events),
        })
    }

    fn devices(&mut self) -> impl IntoIterator<Item = Options<Opened>> {
        self.uevents.note(1);
        self.uevents.send();
        // A device that outlives the module's code.
        core::mem::forget(miscdevice::Registration::<Opened>::new(todo!())); // refused: E0603
        [Options {
            name: c"device",
            mode: 0,
            data: (),
            events: self.events.take(),
            resumed: None,
        }]
    }
}
