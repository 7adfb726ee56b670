//! Repeatable random numbers and content: the same seed gives the same disk on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence that `seed` alone decides.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Bytes that nothing can compress.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    /// Lines of a server's journal, which compress about as well as journals do.
    pub fn text(&mut self, count: usize) -> Vec<u8> {
        const WORDS: [&str; 32] = [
            "accepted",
            "account",
            "after",
            "balance",
            "before",
            "cache",
            "client",
            "closed",
            "connection",
            "customer",
            "database",
            "delivery",
            "error",
            "finished",
            "from",
            "invoice",
            "message",
            "order",
            "payment",
            "queue",
            "received",
            "request",
            "response",
            "retry",
            "server",
            "session",
            "started",
            "timeout",
            "to",
            "update",
            "user",
            "warning",
        ];
        let mut text = Vec::with_capacity(count + 128);
        while text.len() < count {
            let number = self.next();
            text.extend_from_slice(format!("{:010} node{:02}", number % 10_000_000_000, number >> 60).as_bytes());
            for _ in 0..4 + number % 9 {
                text.push(b' ');
                text.extend_from_slice(WORDS[self.below(32) as usize].as_bytes());
            }
            text.push(b'\n');
        }
        text.truncate(count);
        text
    }
}
