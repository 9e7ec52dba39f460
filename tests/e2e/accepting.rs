//! An address of our own on loopback, before a server or in its place.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};

/// Takes connections until it is dropped.
pub struct Accepting {
    pub address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Accepting {
    /// On a free port; `each` is given every connection.
    pub fn new(mut each: impl FnMut(TcpStream) + Send + 'static) -> Accepting {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let ended = Arc::new(AtomicBool::new(false));
        let thread = spawn({
            let ended = Arc::clone(&ended);
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    each(client);
                }
            }
        });
        Accepting {
            address,
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
