# A guest of 124 bytes: a boot sector that writes one sector every few ticks of the BIOS clock, for ever.
#
# Write number n fills one sector with n, 128 times, 4 bytes each, little endian, at sector 2048 + (n * 1029 mod 2^20). 1029 is
# odd, so no sector is written twice before 2^20 writes, and which writes a frozen disk holds can be read off it. The disk
# must have 1 GiB.
#
#   as --32 writing-guest.s -o guest.o
#   ld -m elf_i386 -Ttext 0x7c00 --oformat binary guest.o -o guest.bin
#   xxd -p -l 124 guest.bin            is what lab/throwaway.ps1 holds; the signature 55 aa follows at 510
.code16
.globl _start
_start:
    ljmp $0, $begin
begin:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    movb %dl, drive
next:
    incl count
    movl count, %eax
    movw $0x8000, %di
    movw $128, %cx
    rep stosl
    imull $1029, count, %eax
    andl $0xfffff, %eax
    addl $2048, %eax
    movl %eax, lba
    movw $packet, %si
    movb drive, %dl
    movw $0x4300, %ax                   # INT 13h, extended write, not verified
    int $0x13
    movl 0x46c, %ebx                    # ticks since midnight, 18.2 a second
    addl $4, %ebx
wait:
    sti
    hlt
    movl 0x46c, %eax
    subl %ebx, %eax
    js wait
    jmp next
.align 4
packet:
    .byte 16, 0, 1, 0
    .word 0x8000, 0
lba:
    .long 0, 0
count:
    .long 0
drive:
    .byte 0
.org 510
.word 0xaa55
